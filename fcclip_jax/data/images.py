"""Reads photographs, and resizes them for the network."""

import io
import os
import threading
import warnings

import numpy as np
from etils import epath
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image

from fcclip_jax.data import image_sources
from fcclip_jax.data.image_sources import Readable, Seekable

ImageLike = str | os.PathLike | bytes | bytearray | memoryview | Readable | Image.Image | np.ndarray
"""A path or URL, an encoded image as bytes or as a file opened for reading, a PIL image, or pixels."""

PILLOW_ERRORS = (Exception, Image.DecompressionBombError)
"""Pillow's decoders raise nearly any exception on damaged data, and DecompressionBombError on excessive sizes."""

_SIDEWAYS = (5, 6, 7, 8)
"""The EXIF orientations that swap height and width."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn an image upright, by its EXIF orientation."""

_open_images = threading.Lock()
"""PIL images read their file when their pixels are first asked for, which two threads must not do at once; nor may they read
one open file."""

# Photographs of that size are common. The error for twice the size remains.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def load_image(image: ImageLike) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the RGB pixels of an image, upright by its EXIF tag, as an array that may be written to.

    image: a path (any that etils.epath opens) or an http(s) address, an encoded image as bytes or as a file that is open for
        reading, a PIL image, or an RGB array, which is returned as it is.

    Raises:
        ValueError: the data are not an image or are damaged, or the array is not uint8 [H, W, 3].
        FileNotFoundError: the file does not exist.
        OSError: the address cannot be read.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"expected an RGB image as uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        return image
    if isinstance(image, Image.Image):
        try:
            with _open_images:
                return upright_rgb(image)
        except PILLOW_ERRORS as error:
            name = getattr(image, "filename", "") or "the PIL image"
            raise ValueError(f"cannot read {name}: {reason(error)}") from error
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(image), "the bytes")
    if isinstance(image, Readable):
        name = getattr(image, "name", None)
        with _open_images:
            content = image_sources.whole(image)
        return _decode(content, name if isinstance(name, str) else "the file object")
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(
            f"an image is a path, an address, bytes, an open file, a PIL image or an array, not {type(image).__name__}"
        )
    if isinstance(image, str) and image_sources.is_address(image):
        return _decode(io.BytesIO(image_sources.download(image)), image)
    try:
        path = epath.Path(image).expanduser()
    except KeyError:
        raise ValueError(
            f"cannot read {image}: give a path, or an address that starts with http:// or https://"
        ) from None
    if not path.exists():
        raise FileNotFoundError(f"the image {image} does not exist")
    if path.is_dir():
        raise ValueError(f"{image} is a folder, not an image")
    with path.open("rb") as file:
        return _decode(file, os.fspath(image))


def _decode(file: Seekable, name: str) -> UInt8[np.ndarray, "H W 3"]:
    try:
        return image_sources.read(file, upright_rgb)
    except PILLOW_ERRORS as error:
        raise ValueError(f"cannot read {name}: {reason(error)}") from error


def upright_shape(path: epath.Path) -> tuple[int, int]:
    """Returns (height, width) of the pixels that `load_image` returns, from the file's header alone.

    Raises:
        ValueError: the file is not an image, or its header is damaged.
    """
    try:
        with path.open("rb") as file:
            return image_sources.read(
                file, lambda image: image.size if orientation(image) in _SIDEWAYS else image.size[::-1]
            )
    except PILLOW_ERRORS as error:
        raise ValueError(f"cannot read {path}: {reason(error)}") from error


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation: 1 is upright, 2 to 8 are flipped or turned. Damaged EXIF data count as upright."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except PILLOW_ERRORS:
        return 1
    return found if found in _UPRIGHT else 1


def reason(error: BaseException) -> str:
    """Returns why Pillow could not read a file, for an error message."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image in a known format"
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return (
            f"it has more than {limit:.0f} megapixels, which files made to exhaust memory have too; allow more with"
            " --max-megapixels N, or in Python with PIL.Image.MAX_IMAGE_PIXELS = N * 500_000"
        )
    return str(error) or type(error).__name__


def stored_numbers(image: Image.Image) -> Shaped[np.ndarray, "H W *C"]:
    """Returns the numbers that a file stores, for images that are maps of numbers rather than photographs.

    These are the indices into a palette if the image has one. Greys of 2 and 4 bits, which Pillow scales up to 8 bits,
    keep their values.

    Raises:
        Exception: Pillow's own, of any kind, for a damaged file; catch PILLOW_ERRORS.
    """
    layout = image.tile[0][3] if image.tile else None  # of the pixels in the file; gone once they are read
    stretched = {"L;2": 85, "L;4": 17}.get(layout if isinstance(layout, str) else next(iter(layout or ()), None), 1)
    numbers = np.array(image)
    return numbers if stretched == 1 else numbers // np.uint8(stretched)


def upright_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a PIL image's RGB pixels, upright; deep greys are stretched to 8 bits.

    Raises:
        Exception: Pillow's own, of any kind, for damaged data; catch PILLOW_ERRORS.
    """
    if 0 in image.size:
        raise ValueError(f"the image is empty: {image.width} pixels wide and {image.height} high")
    turned = orientation(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # convert("RGB") would clip deep greys to white.
        grey = np.asarray(image, np.float64)
        if not np.isfinite(grey).all():
            raise ValueError("the image has infinite or NaN pixels; give finite ones")
        span = max(grey.max() - grey.min(), 1e-12)
        image = Image.fromarray(np.uint8(np.round((grey - grey.min()) * (255 / span))))
    if turn := _UPRIGHT.get(turned):
        image = image.transpose(turn)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # Pillow warns of one step to RGB, which gives the same colours
    return np.array(image.convert("RGB"))


def resized_shape(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """Returns the size after detectron2's ResizeShortestEdge: the shorter side is `short_side`, the longer at most `max_side`.

    Each side is at least 1 pixel; the official code fails if one rounds to 0.
    """
    scale = short_side / min(height, width)
    new_h, new_w = (short_side, scale * width) if height < width else (scale * height, short_side)
    if max(new_h, new_w) > max_side:
        scale = max_side / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    return max(int(new_h + 0.5), 1), max(int(new_w + 0.5), 1)


def resize(image: UInt8[np.ndarray, "H W 3"], shape: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes with Pillow's bilinear filter, anti-aliased when shrinking, which the official results were computed with."""
    if image.shape[:2] == shape:
        return image
    return np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))


def pad(image: UInt8[np.ndarray, "h w 3"], shape: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Pads the image at the bottom and right, with zeros; the network ignores the padding."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, shape[0] - height), (0, shape[1] - width), (0, 0)))
