"""PyTorch's zip files, read without PyTorch: the same bits as with it; archives that PyTorch does not write are refused."""

import collections
import struct
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from convert import torch_zip, weight_files
from tests.convert.pickles import VALUES, state, storage, tensor, text, write


def loaded(path) -> dict[str, np.ndarray]:
    return {key: value.load() for key, value in weight_files.read(path).tensors.items()}


@pytest.fixture
def without_torch(monkeypatch):
    """A function that reads a file's arrays as if PyTorch were not installed."""

    def read(path):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "torch", None)
            return loaded(path)

    return read


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape), key
        assert found[key].tobytes() == array.tobytes(), key


def every_kind(torch) -> dict:
    """Tensors of every dtype with extreme values, views, shared storages, and the smallest shapes."""
    bits = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 4096, np.uint8))
    base = torch.arange(60.0).reshape(3, 4, 5)
    kinds = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"]
    tensors = {kind: bits.view(getattr(torch, kind)).reshape(2, -1) for kind in kinds}
    # NaNs keep no payload when they are widened.
    tensors = {key: x.nan_to_num() if x.is_floating_point() else x.clone() for key, x in tensors.items()}
    return tensors | {
        "bool": torch.tensor([True, False, True]),
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "part": base[1:, ::2, 3],
        "last": base[-1, -1, -1],
        "flat": base.view(-1)[7:50],
        "bfloat16.part": tensors["bfloat16"][:, 5::7].T,
        "scalar": torch.tensor(2**40 + 1),
        "empty": torch.zeros(0),
        "empty.rows": torch.zeros(3, 0, 2, dtype=torch.float16),
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
        "frozen": torch.nn.Parameter(base[0], requires_grad=False),
        "size.one": base[:1, :1].expand(1, 1, 5),
    }


WRAPPINGS = {
    "bare": lambda tensors: tensors,
    "a module's": lambda tensors: collections.OrderedDict((f"module.{key}", x) for key, x in tensors.items()),
    "a training's": lambda tensors: {
        "model": {f"model.module.{key}": x for key, x in tensors.items()},
        "optimizer": {"state": {0: {"step": 7}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}]},
        "scheduler": {"milestones": collections.Counter([5, 9]), "last": None, "warm": True, "seed": 2**63},
        "size": [next(iter(tensors.values())).shape],
        "iteration": 70_000,
    },
    "nested": lambda tensors: {"state_dict": {"model": tensors}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_the_same_bits_as_with_pytorch(tmp_path, without_torch, wrapping):
    torch = pytest.importorskip("torch", reason="PyTorch writes .pth files (extra: convert)")
    path = tmp_path / "w.pth"
    torch.save(WRAPPINGS[wrapping](every_kind(torch)), path)
    expected = loaded(path)
    assert len(expected) == 22
    assert_same_bits(without_torch(path), expected)


def test_a_state_dict_with_versions(tmp_path, without_torch):
    """Module.state_dict adds the attribute `_metadata` to its OrderedDict."""
    torch = pytest.importorskip("torch", reason="PyTorch writes .pth files (extra: convert)")
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save({"model": layers.state_dict()}, tmp_path / "w.pth")
    expected = {key: value.numpy() for key, value in layers.state_dict().items()}
    assert_same_bits(without_torch(tmp_path / "w.pth"), expected)


def test_by_hand(tmp_path, without_torch):
    path = write(tmp_path / "w.pth", state(tensor()))
    assert_same_bits(without_torch(path), {"w": np.asarray([[1.5, -2], [3.25, 4]], np.float32)})
    path = write(tmp_path / "unmarked.pth", state(tensor()).replace(b"\x80\x02", b"\x80\x03"), byteorder=b"little")
    assert_same_bits(without_torch(path), {"w": np.asarray([[1.5, -2], [3.25, 4]], np.float32)})


@pytest.mark.parametrize("kind", ["Float", "BFloat16", "Short"])
def test_big_endian_files(tmp_path, without_torch, kind):
    dtype = {"Float": np.float32, "BFloat16": ml_dtypes.bfloat16, "Short": np.int16}[kind]
    values = np.asarray([1, 2, 300, -4], dtype)
    length = VALUES.nbytes // values.itemsize
    swapped = np.zeros(length, dtype)
    swapped[:4] = values
    path = write(
        tmp_path / "w.pth",
        state(tensor(storage(f"{kind}Storage", text("big"), 4))),
        byteorder=b"big",
        **{"data/big": swapped.byteswap().tobytes()},
    )
    expected = values.reshape(2, 2).astype(np.float32 if kind == "BFloat16" else dtype)
    assert_same_bits(without_torch(path), {"w": expected})


def test_memory_is_that_of_the_tensor(tmp_path, without_torch):
    torch = pytest.importorskip("torch", reason="PyTorch writes .pth files (extra: convert)")
    path = tmp_path / "w.pth"
    torch.save({"whole": torch.zeros(2**21), "small": torch.arange(2.0**21)[5 :: 2**20]}, path)
    archive = torch_zip.open_archive(path)
    tracemalloc.start()
    try:
        stored = archive.load()
        keys, _ = tracemalloc.get_traced_memory()
        assert archive.read_tensor(stored["small"]).tolist() == [5, 2**20 + 5]
        small = tracemalloc.get_traced_memory()[1]
        archive.read_tensor(stored["whole"])
        whole = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The file has two storages of 8 MiB. Python objects take some kilobytes.
    assert keys < 2**16 and small < 2**16 and 2**23 <= whole < 2**23 + 2**16


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, content in members:
            archive.writestr(member, content)


def patched(*changes):
    """Makes a file whose bytes are changed at offsets into the parts of the archive that a signature begins."""

    def make(path):
        content = bytearray(write(path, state(tensor())).read_bytes())
        for signature, which, offset, new in changes:
            start = [at for at in range(len(content)) if content.startswith(signature, at)][which]
            content[start + offset : start + offset + len(new)] = new
        path.write_bytes(content)

    return make


def spliced(change):
    def make(path):
        path.write_bytes(change(write(path, state(tensor())).read_bytes()))

    return make


def with_zip64(content: bytes, count: int) -> bytes:
    """Adds the Zip64 end, with a count of entries that may contradict the short one's."""
    size, start = struct.unpack_from("<2I", content, len(content) - 10)
    end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(content) - 22, 1)
    return content[:-22] + end + locator + content[-22:]


GOOD = [("archive/data.pkl", state(tensor())), ("archive/data/0", VALUES.tobytes())]


def two_pickles(path):
    zipped(path, [*GOOD, ("archive/data.pk2", b"")])
    path.write_bytes(path.read_bytes().replace(b"data.pk2", b"data.pkl"))


ENTRY, HEADER, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
LONG = struct.pack("<I", 2**31)
ARCHIVES = {
    "an absolute name": (lambda path: zipped(path, [*GOOD, ("/etc/w", b"")]), "has a member named '/etc/w'"),
    "a name that climbs": (lambda path: zipped(path, [*GOOD, ("archive/../w", b"")]), "named 'archive/../w'"),
    "a name of Windows": (patched((b"archive/version", 1, 0, b"arch\\..")), "has a member named 'arch"),
    "a name with NUL": (patched((b"archive/version", 1, 9, b"\x00")), r"named 'archive/v\x00rsion'"),
    "a name that is not UTF-8": (patched((b"archive/version", 1, 9, b"\xff")), r"named b'archive/v\xffrsion'"),
    "a folder": (lambda path: zipped(path, [("archive/", b""), *GOOD]), "has a member named 'archive/'"),
    "two folders": (lambda path: zipped(path, [*GOOD, ("other/data.pkl", b"")]), "not in the archive's folder"),
    "two pickles": (two_pickles, "has two members named 'archive/data.pkl'"),
    "no pickle": (lambda path: zipped(path, GOOD[1:]), "it has no data.pkl"),
    "no storage": (lambda path: zipped(path, GOOD[:1]), "it has no storage '0'"),
    "an archive in an archive": (
        lambda path: zipped(path, [("archive/w.pth", write(path, state(tensor())).read_bytes())]),
        "it has no data.pkl",
    ),
    "a compressed bomb": (
        lambda path: zipped(path, [("archive/data.pkl", bytes(2**26))], zipfile.ZIP_DEFLATED),
        "'archive/data.pkl' is compressed or encrypted",
    ),
    "a compressed storage": (
        lambda path: zipped(path, [GOOD[0], ("archive/data/0", bytes(2**26))], zipfile.ZIP_DEFLATED),
        "is compressed or encrypted",
    ),
    "compressed, its header says": (patched((HEADER, 0, 8, b"\x08")), "another header than"),
    "an encrypted member": (patched((ENTRY, 0, 8, b"\x01")), "is compressed or encrypted"),
    "a size of nothing": (patched((ENTRY, 0, 20, LONG)), "is compressed or encrypted"),
    "a size beyond the file": (patched((ENTRY, -1, 20, LONG * 2)), "overlaps other bytes of the file"),
    "a size over the next member": (
        patched((ENTRY, 0, 20, struct.pack("<2I", *[len(GOOD[0][1]) + 20] * 2))),
        "'archive/byteorder' overlaps other bytes",
    ),
    "one member's bytes for two": (patched((ENTRY, 1, 42, struct.pack("<I", 0))), "another header than"),
    "a header beyond the file": (patched((ENTRY, 1, 42, LONG)), "its zip archive is truncated"),
    "another name in the header": (patched((b"archive/version", 0, 8, b"V")), "another header than"),
    "another signature": (patched((HEADER, 1, 0, b"XX")), "another header than"),
    "no size": (patched((ENTRY, 0, 20, b"\xff" * 8)), "has a member without a size"),
    "another disk": (patched((END, 0, 4, b"\x01")), "misplaced central directory"),
    "a directory elsewhere": (patched((END, 0, 16, b"\x01\x00\x00\x00")), "misplaced central directory"),
    "more entries than there are": (patched((END, 0, 8, b"\x09\x00\x09\x00")), "directory is truncated"),
    "fewer entries than there are": (patched((END, 0, 8, b"\x01\x00\x01\x00")), "directory is damaged"),
    "a longer entry": (patched((ENTRY, -1, 30, b"\x09")), "directory is damaged"),
    "a damaged entry": (patched((ENTRY, 1, 0, b"XX")), "directory is damaged"),
    "a truncated directory": (spliced(lambda content: content[:-60] + content[-22:]), "misplaced central directory"),
    "bytes in front": (spliced(lambda content: b"#!/bin/sh\n" + content), "misplaced central directory"),
    "a comment": (spliced(lambda content: content[:-2] + b"\x04\x00text"), "does not end as PyTorch's do"),
    "two different ends": (spliced(lambda content: with_zip64(content, 3)), "has two different ends"),
    "a damaged pickle": (patched((b"collections", 0, 0, b"C")), "its data.pkl is damaged"),
    "another byte order": (
        lambda path: write(path, state(tensor()), byteorder=b"middle"),
        "b'middle', not little or big",
    ),
    "a long byte order": (lambda path: write(path, state(tensor()), byteorder=bytes(999)), "byteorder has 999 bytes"),
    "a pickle of 17 MiB": (lambda path: write(path, bytes(17 * 2**20)), "its data.pkl has 17825792 bytes, more than"),
    "a program": (
        lambda path: zipped(path, [*GOOD, ("archive/constants.pkl", b"")]),
        "is a TorchScript archive, which",
    ),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_refused_archives(tmp_path, monkeypatch, case):
    """With and without PyTorch, whose own reader is asked after these checks of the archive."""
    make, sentence = ARCHIVES[case]
    path = tmp_path / "w.pth"
    make(path)
    for hidden in (True, False):
        with monkeypatch.context() as patch:
            if hidden:
                patch.setitem(sys.modules, "torch", None)
            elif "torch" not in sys.modules:
                pytest.importorskip("torch", reason="PyTorch reads .pth files too (extra: convert)")
            tracemalloc.start()
            try:
                with pytest.raises(ValueError, match="is refused: ") as caught:
                    weight_files.read(path)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        message = str(caught.value)
        assert str(path) in message and message.isprintable()
        assert sentence in message or (case == "no storage" and not hidden)
        # The largest file has 17 MiB, and the bombs unpack to 64 MiB; Python objects take some kilobytes.
        assert peak < 2**20


def test_the_zip64_end_is_read(tmp_path, without_torch):
    path = tmp_path / "w.pth"
    spliced(lambda content: with_zip64(content, 4))(path)
    assert_same_bits(without_torch(path), {"w": VALUES.reshape(2, 2)})


def test_an_older_file_needs_pytorch(tmp_path, without_torch):
    torch = pytest.importorskip("torch", reason="PyTorch writes .pth files (extra: convert)")
    torch.save({"w": torch.zeros(1)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="old.pth has the format of PyTorch before 1.6 and needs torch, which is not"):
        without_torch(tmp_path / "old.pth")
