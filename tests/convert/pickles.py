"""Writes PyTorch's files by hand, instruction by instruction, also those that PyTorch would never write."""

import pathlib
import struct
import zipfile

import numpy as np

VALUES = np.asarray([1.5, -2.0, 3.25, 4.0], np.float32)
"""The only storage, with the key 0."""


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def name(module: str, function: str) -> bytes:
    return f"c{module}\n{function}\n".encode()


def row(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def call(module: str, function: str, *arguments: bytes) -> bytes:
    return name(module, function) + row(*arguments) + b"R"


def storage(kind: str = "FloatStorage", key: bytes = text("0"), length: int = 4) -> bytes:
    return row(text("storage"), name("torch", kind), key, text("cpu"), integer(length)) + b"Q"


HOOKS = call("collections", "OrderedDict")


def tensor(
    stored: bytes | None = None,
    *,
    offset: bytes = integer(0),
    shape: bytes = row(integer(2), integer(2)),
    strides: bytes = row(integer(2), integer(1)),
    hooks: bytes = HOOKS,
    more: bytes = b"",
) -> bytes:
    parts = (storage() if stored is None else stored, offset, shape, strides, b"\x89", hooks, more)
    return call("torch._utils", "_rebuild_tensor_v2", *parts)


def state(value: bytes, key: bytes = text("w")) -> bytes:
    """Returns the pickle of a dictionary with one item."""
    return b"\x80\x02}" + key + value + b"s."


def write(path: pathlib.Path, pickle: bytes, **members: bytes) -> pathlib.Path:
    """Writes the archive that torch.save would, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        for member, content in {"byteorder": b"little", "version": b"3\n", **members}.items():
            archive.writestr(f"archive/{member}", content)
        archive.writestr("archive/data/0", VALUES.tobytes())
    return path
