"""Opens the zip archives that torch.save writes, and refuses all others.

The format is in PyTorch's notes, https://docs.pytorch.org/docs/stable/notes/serialization.html: one folder with the
pickle `data.pkl`, the mark `byteorder`, and one member `data/KEY` for each storage, all uncompressed and aligned. Such an
archive needs little of the zip format, and nothing that makes two readers disagree about its contents: each member is
stored once, under one name, in bytes of its own.
"""

import os
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from . import tensor_pickle
from .tensor_pickle import StoredTensor

MAX_DIRECTORY = 4 * 2**20
"""Bytes of the central directory, which has less than 100 for each storage."""
MAX_PICKLE = 16 * 2**20
"""Bytes of data.pkl, which has about 150 bytes for each tensor."""

BYTE_ORDERS = {b"little": "<", b"big": ">"}
"""The contents of `byteorder`, which PyTorch before 2.1 did not write, and NumPy's marks."""

END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR64 = struct.Struct("<4sIQI")
CENTRAL = struct.Struct("<4s6H3I5H2I")
LOCAL = struct.Struct("<4s5H3I2H")
KNOWN_FLAGS = 0x0808
"""Bit 3: sizes follow the data too; bit 11: names are UTF-8. Others mean encryption or patches."""


class Record(NamedTuple):
    """The bytes of a member in the file."""

    offset: int
    size: int
    crc: int


class Archive(NamedTuple):
    """An opened archive."""

    path: pathlib.Path
    records: dict[str, Record]
    """By name, without the archive's folder."""
    byte_order: str
    """The storages' byte order, NumPy's `<` or `>`."""
    pickle: bytes
    """The member data.pkl."""

    def load(self) -> Any:
        """Returns the archive's value, with a StoredTensor for each tensor. Nothing that the file names is called.

        Raises:
            ValueError: it contains more than plain tensors and values; the message, without the path, gives the reason.
        """
        sizes = {key.removeprefix("data/"): r.size for key, r in self.records.items() if key.startswith("data/")}
        return tensor_pickle.load(self.pickle, sizes)

    def read_tensor(self, tensor: StoredTensor) -> np.ndarray:
        """Reads a tensor's own bytes from the file; half precision becomes float32."""
        dtype = tensor.storage.dtype
        if tensor.nbytes == 0:
            array = np.empty(tensor.shape, dtype)
        else:
            itemsize = dtype.itemsize
            # Pages of a mapped file are not allocated: a view's gaps cost no memory.
            mapped = np.memmap(
                self.path,
                mode="r",
                offset=self.records[f"data/{tensor.storage.key}"].offset + tensor.offset * itemsize,
                shape=(itemsize * (1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))),),
            )
            strides = tuple(stride * itemsize for stride in tensor.strides)
            # Unsigned integers, because bfloat16 has one byte order only.
            raw = np.ndarray(tensor.shape, f"{self.byte_order}u{itemsize}", mapped, strides=strides)
            array = raw.astype(f"=u{itemsize}", order="C").view(dtype)
        return array.astype(np.float32) if dtype.name in ("float16", "bfloat16") else array


class _Member(NamedTuple):
    name: str
    header: int
    size: int
    crc: int
    plain: bool
    """Whether the member is neither compressed nor encrypted."""


def open_archive(path: pathlib.Path) -> Archive:
    """Reads the names and places of the members.

    Raises:
        ValueError: the file is no such archive; the message, without the path, gives the reason.
    """
    with path.open("rb") as file:
        start, size, count = _directory(file)
        file.seek(start)
        members = list(_members(file.read(size), count))
        if any(member.name.endswith("/constants.pkl") for member in members):
            raise ValueError("it is a TorchScript archive, which is a program")
        records = _records(file, members, start)
        order = _content(file, records, "byteorder", 16) if "byteorder" in records else b"little"
        if order not in BYTE_ORDERS:
            raise ValueError(f"its byte order is {order!r}, not little or big")
        return Archive(path, records, BYTE_ORDERS[order], _content(file, records, "data.pkl", MAX_PICKLE))


def _content(file: BinaryIO, records: dict[str, Record], name: str, limit: int) -> bytes:
    """Returns the bytes of a small member, after a check of their number and checksum."""
    if name not in records:
        raise ValueError(f"it has no {name}")
    record = records[name]
    if record.size > limit:
        raise ValueError(f"its {name} has {record.size} bytes, more than {limit}")
    file.seek(record.offset)
    content = file.read(record.size)
    if zlib.crc32(content) != record.crc:
        raise ValueError(f"its {name} is damaged")
    return content


def _directory(file: BinaryIO) -> tuple[int, int, int]:
    """Returns the start, the bytes and the entries of the central directory, which must end where its end is marked."""
    end = file.seek(0, os.SEEK_END) - END.size
    signature, disk, first_disk, here, count, size, start, comment = _unpack(END, file, end)
    if signature != b"PK\x05\x06" or comment:
        raise ValueError("its zip archive does not end as PyTorch's do")
    stop = end
    if end >= LOCATOR64.size:
        locator, disk64, end64, disks = _unpack(LOCATOR64, file, end - LOCATOR64.size)
        if locator == b"PK\x06\x07":
            stop = end - LOCATOR64.size - END64.size
            signature, length, _, _, disk64_, first64, here64, count64, size64, start64 = _unpack(
                END64, file, max(stop, 0)
            )
            short = (min(count64, 0xFFFF), min(size64, 0xFFFFFFFF), min(start64, 0xFFFFFFFF))
            if signature != b"PK\x06\x06" or end64 != stop or length != 44 or disk64 or disk64_ or first64 or disks > 1:
                raise ValueError("its zip archive has a misplaced end")
            if (count, size, start) != short or here64 != count64:
                raise ValueError("its zip archive has two different ends")
            here, count, size, start = min(here64, 0xFFFF), count64, size64, start64
    if disk or first_disk or here != min(count, 0xFFFF) or start + size != stop:
        raise ValueError("its zip archive has a misplaced central directory")
    if size > MAX_DIRECTORY:
        raise ValueError(f"its zip archive's central directory has {size} bytes, more than {MAX_DIRECTORY}")
    return start, size, count


def _members(directory: bytes, count: int) -> Iterator[_Member]:
    position = 0
    for _ in range(count):
        if position + CENTRAL.size > len(directory):
            raise ValueError("its zip archive's central directory is truncated")
        fields = CENTRAL.unpack_from(directory, position)
        signature, _, _, flags, method, _, _, crc, packed, size, of_name, of_extra, of_comment, disk, _, _, header = (
            fields
        )
        position += CENTRAL.size
        name_bytes = directory[position : position + of_name]
        extra = directory[position + of_name : position + of_name + of_extra]
        position += of_name + of_extra + of_comment
        if signature != b"PK\x01\x02" or position > len(directory) or disk:
            raise ValueError("its zip archive's central directory is damaged")
        name = _name(name_bytes)
        size, packed, header = _wide(extra, (size, packed, header))
        yield _Member(name, header, size, crc, plain=not method and not flags & ~KNOWN_FLAGS and packed == size)
    if position != len(directory):
        raise ValueError("its zip archive's central directory is damaged")


def _name(encoded: bytes) -> str:
    try:
        name = encoded.decode()
    except UnicodeDecodeError:
        raise ValueError(f"its zip archive has a member named {encoded[:80]!r}") from None
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"its zip archive has a member named {name[:80]!r}")
    return name


def _wide(extra: bytes, short: tuple[int, int, int]) -> tuple[int, ...]:
    """Returns the size, the packed size and the offset of a member. Fields of all ones are in the Zip64 extra field."""
    found: list[int] = []
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            found = [value for (value,) in struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8])]
            break
        extra = extra[4 + length :]
    values = []
    for value in short:
        if value == 0xFFFFFFFF:
            if not found:
                raise ValueError("its zip archive has a member without a size")
            value = found.pop(0)
        values.append(value)
    return tuple(values)


def _records(file: BinaryIO, members: list[_Member], directory: int) -> dict[str, Record]:
    """Finds the members' bytes: before the central directory, and none in two members."""
    records: dict[str, Record] = {}
    folder = members[0].name.split("/")[0] if members else ""
    end = 0
    for member in sorted(members, key=lambda member: member.header):
        if not member.plain:
            raise ValueError(f"its member {member.name!r} is compressed or encrypted, which PyTorch does not do")
        signature, _, flags, method, _, _, _, _, _, of_name, of_extra = _unpack(LOCAL, file, member.header)
        data = member.header + LOCAL.size + of_name + of_extra
        if signature != b"PK\x03\x04" or flags & ~KNOWN_FLAGS or method or file.read(of_name) != member.name.encode():
            raise ValueError(f"its member {member.name!r} has another header than its zip archive's directory says")
        if member.header < end or data + member.size > directory:
            raise ValueError(f"its member {member.name!r} overlaps other bytes of the file")
        end = data + member.size
        first, _, name = member.name.partition("/")
        if first != folder or not name:
            raise ValueError(f"its member {member.name!r} is not in the archive's folder {folder!r}")
        if name in records:
            raise ValueError(f"its zip archive has two members named {member.name!r}")
        records[name] = Record(data, member.size, member.crc)
    return records


def _unpack(layout: struct.Struct, file: BinaryIO, position: int) -> tuple:
    if position < 0:
        raise ValueError("its zip archive is truncated")
    file.seek(position)
    content = file.read(layout.size)
    if len(content) < layout.size:
        raise ValueError("its zip archive is truncated")
    return layout.unpack(content)
