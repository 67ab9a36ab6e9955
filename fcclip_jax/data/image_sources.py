"""Where encoded images come from: addresses, open files, PNGs with long texts, and kinds that Pillow lacks."""

import io
import struct
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from PIL import Image, features

Value = TypeVar("Value")


@runtime_checkable
class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int = ..., /) -> bytes: ...


@runtime_checkable
class Seekable(Readable, Protocol):
    """One that can be rewound."""

    def seek(self, place: int, /) -> int: ...


SCHEMES = ("http://", "https://")
TIMEOUT = 30
"""Seconds without an answer after which an address counts as unreachable."""
LARGEST = 2**29
"""Bytes of the largest file that is read from an address or an open file."""

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""PNG's chunks of texts and colour profiles, which no pixel depends on here."""
_AVIF = {b"avif", b"avis"}
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
"""The brands that files of both kinds have in their first box (ISO/IEC 23008-12, AVIF 1.1)."""


def is_address(text: str) -> bool:
    """Returns whether a text is an http(s) address."""
    return text.lower().startswith(SCHEMES)


def download(address: str) -> bytes:
    """Returns the file at an http(s) address.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large.
    """
    # Some servers refuse Python's own name.
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (compatible; fcclip_jax)"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return _limited(answer, address)
    except urllib.error.HTTPError as error:
        raise OSError(f"cannot read {address}: the server answers {error.code} ({error.reason})") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise OSError(f"cannot read {address}: {getattr(error, 'reason', None) or error}") from error


def whole(file: Readable) -> io.BytesIO:
    """Returns the content of an open file from its beginning, if it can be rewound, apart from the file.

    Raises:
        ValueError: it is open as text, or too large.
    """
    if isinstance(file, Seekable) and getattr(file, "seekable", lambda: True)():
        file.seek(0)
    return io.BytesIO(_limited(file, "the file object"))


def read(file: Seekable, use: Callable[[Image.Image], Value]) -> Value:
    """Returns use(image) of an encoded image.

    PNGs whose texts or colour profile exceed Pillow's limits are read too, and HEIC images if pillow-heif is installed.

    Raises:
        ValueError: the image is HEIC or AVIF, and what would read it is not installed.
        Exception: Pillow's own, of any kind, for damaged data.
    """
    try:
        with Image.open(file) as image:
            return use(image)
    except Exception as error:
        file.seek(0)
        data = file.read(LARGEST)
        if isinstance(error, Image.UnidentifiedImageError) and _registers_reader(data):
            plain = data
        elif not data.startswith(_PNG) or len(plain := without_texts(data)) == len(data):
            raise
    with Image.open(io.BytesIO(plain)) as image:
        return use(image)


def _registers_reader(data: bytes) -> bool:
    """Returns whether a reader for the data, which Pillow did not recognise, was added to Pillow.

    Raises:
        ValueError: the data need one that is not installed.
    """
    if data[4:8] != b"ftyp":
        return False
    box = data[8 : int.from_bytes(data[:4], "big")]
    brands = {box[place : place + 4] for place in range(0, len(box), 4)}
    if brands & _AVIF:
        if features.check("avif"):  # so the file is damaged
            return False
        raise ValueError("it is an AVIF image, which this Pillow cannot read; pip install --upgrade pillow")
    if not brands & _HEIF:
        return False
    try:
        import pillow_heif
    except ImportError:
        raise ValueError("it is a HEIC image, which Pillow cannot read alone; pip install pillow-heif") from None
    pillow_heif.register_heif_opener()
    return True


def without_texts(data: bytes) -> bytes:
    """Returns a PNG without its texts and colour profile."""
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        end = place + 12 + length
        if kind not in _TEXTS:
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def _limited(file: Readable, name: str) -> bytes:
    data = file.read(LARGEST + 1)
    if not isinstance(data, bytes):
        raise ValueError(f"{name} is open as text; open it for reading bytes, mode 'rb'")
    if len(data) > LARGEST:
        raise ValueError(f"{name} has more than {LARGEST // 2**20} MiB; give a smaller image, or a path")
    return data
