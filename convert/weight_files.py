"""Reads PyTorch's weight files without running code that they contain, and writes them.

PyTorch reads its own files where it is installed, with weights_only. Without it, `torch_zip` and `tensor_pickle` read those
of PyTorch 1.6 and later: the same tensors, of the dtypes that .safetensors files may have too.
"""

import contextlib
import functools
import hashlib
import io
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  a dependency of jax, which adds bfloat16 to NumPy
import numpy as np
import safetensors
import safetensors.numpy

from fcclip_jax.checkpoint import Origin
from fcclip_jax.command_line import first_line, missing_package
from fcclip_jax.files import check_space, replacing

from . import nesting, torch_zip
from .tensor_pickle import StoredTensor

WRAPPERS = ("model", "state_dict")
"""Keys that contain the weights in training checkpoints, which also store optimisers and counters."""
PREFIXES = ("module.", "model.")
"""Prefixes that DistributedDataParallel and other wrappers add to every key."""
MAX_WRAPPERS = 10
"""Dictionaries inside each other; a file's dictionary may also contain itself."""
MAX_KEY = 1000
"""Characters of a tensor's name."""
OLD_PICKLES = 5
"""With which files from before PyTorch 1.6 begin: a number, the version, the system, the value and the storages' names."""
SAFETENSORS_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


class Tensor(NamedTuple):
    """A tensor of an opened file. `load` reads it; half precision becomes float32."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


class Weights(NamedTuple):
    """An opened weight file."""

    source: Origin
    tensors: dict[str, Tensor]
    size: int
    """Size of the file, in bytes."""


def read(path: pathlib.Path, *, name: str | None = None) -> Weights:
    """Opens a .safetensors file, or any file that torch.save wrote.

    name: the name of the weights' origin; by default the file's.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it has no plain tensors, or would run code, or only PyTorch reads it, which is missing.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the weight file inside it")
    if not path.is_file():
        raise FileNotFoundError(f"the weight file {path} does not exist; check the path")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in tensors:
        if len(key) > MAX_KEY or not key.isprintable():
            raise ValueError(
                f"{path}: the key {key[:80]!r} has unprintable characters, or more than {MAX_KEY}; rename it"
            )
    while prefix := next((p for p in PREFIXES if tensors and all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    if not tensors:
        raise ValueError(f"{path} contains no tensors; give the file with the model's weights")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Weights(Origin(name or path.name, sha256), tensors, path.stat().st_size)


def check_free(path: pathlib.Path, *, overwrite: bool) -> None:
    """Checks that the output file can be written.

    Raises:
        FileExistsError: the path exists and is a folder, or is a file and `overwrite` is False.
        FileNotFoundError: its folder does not exist.
        ValueError: its suffix is neither .safetensors nor .pth.
    """
    if path.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"the output {path} ends in {path.suffix or 'no suffix'}; end it in .safetensors or .pth")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the output's folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise FileExistsError(f"the output {path} is a folder; choose another name")
    if path.exists() and not overwrite:
        raise FileExistsError(f"the output {path} exists already; choose another name, or overwrite it (--overwrite)")


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes .safetensors, or .pth with the tensors under `model`: the whole file, or nothing.

    Raises:
        OSError: the file cannot be written, because the disk is full for example.
        ValueError: the suffix is .pth, and PyTorch is missing.
    """
    torch = _find_torch() if path.suffix == ".pth" else None
    if path.suffix == ".pth" and torch is None:
        raise missing_package("torch", str(path), "write a .safetensors file")
    try:
        check_space(path.parent, sum(array.nbytes for array in tensors.values()))
        with replacing(path) as temporary:
            if torch is None:
                temporary.touch()
                mode = os.stat(temporary).st_mode
                safetensors.numpy.save_file(dict(tensors), temporary)
                os.chmod(temporary, mode)  # only the owner may read files that safetensors creates
            else:
                torch.save({"model": {key: torch.from_numpy(array) for key, array in tensors.items()}}, temporary)
    # Neither library reports the operating system's error.
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {first_line(error)}") from error


def _read_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
    tensors = {}
    try:
        file = safetensors.safe_open(path, "np")
        for key in file.keys():  # noqa: SIM118  a safe_open cannot be iterated over
            header = file.get_slice(key)
            if header.get_dtype() not in SAFETENSORS_DTYPES:
                raise ValueError(f"{path}: {key} has dtype {header.get_dtype()}; save the weights as float32 first")
            tensors[key] = Tensor(tuple(header.get_shape()), functools.partial(_load_safetensors, file, key))
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file, or is damaged ({first_line(error)}); download or save it again"
        ) from None
    return tensors


def _load_safetensors(file: Any, key: str) -> np.ndarray:
    array = file.get_tensor(key)
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array


def _read_torch(path: pathlib.Path) -> dict[str, Tensor]:
    """Reads a file of torch.save's with PyTorch, or without it if it is not installed."""
    torch = _find_torch()
    if not zipfile.is_zipfile(path):
        return _read_old_torch(path, torch)
    with _refusing(path):
        archive = torch_zip.open_archive(path)
    if torch is not None:
        with _refusing(path):
            nesting.check_depth(io.BytesIO(archive.pickle))
        return _read_with_torch(path, torch, mapped=True)
    with _refusing(path):
        loaded = archive.load()
    stored = _named_tensors(path, loaded, lambda value: isinstance(value, StoredTensor))
    return {key: Tensor(value.shape, functools.partial(archive.read_tensor, value)) for key, value in stored.items()}


@contextlib.contextmanager
def _refusing(path: pathlib.Path) -> Iterator[None]:
    """Makes a sentence of the reasons for which a file is refused."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"{path} is refused: {error}; save the model's state_dict() alone, preferably as .safetensors"
        ) from None


def _read_old_torch(path: pathlib.Path, torch: ModuleType | None) -> dict[str, Tensor]:
    """Reads a file from before PyTorch 1.6, which is no zip archive and cannot be mapped."""
    if not _is_pickle(path):
        raise ValueError(f"{path} is not a PyTorch file, or is truncated; download or save it again")
    if torch is None:
        raise missing_package(
            "torch",
            f"{path} has the format of PyTorch before 1.6 and",
            "save the weights again with a newer PyTorch or as .safetensors",
        )
    with _refusing(path), path.open("rb") as file:
        for _ in range(OLD_PICKLES):
            nesting.check_depth(file)
    return _read_with_torch(path, torch, mapped=False)


def _read_with_torch(path: pathlib.Path, torch: ModuleType, *, mapped: bool) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, weights_only=True, mmap=mapped, map_location="cpu")
    except OSError:
        raise
    # PyTorch has one type of error for files that could run code; a damaged file can raise any other.
    except Exception as error:
        raise ValueError(
            f"{path} is refused: it is damaged, or contains more than plain tensors, which can run code; save the"
            " model's state_dict() alone, preferably as .safetensors"
        ) from error
    tensors = _named_tensors(path, loaded, functools.partial(_is_plain, torch))
    return {key: Tensor(tuple(value.shape), functools.partial(_load_torch, value)) for key, value in tensors.items()}


def _named_tensors(path: pathlib.Path, loaded: Any, is_plain: Callable[[Any], bool]) -> dict[str, Any]:
    """Returns the dictionary of tensors inside the wrappers of a training checkpoint."""
    for _ in range(MAX_WRAPPERS):
        name = next((w for w in WRAPPERS if isinstance(loaded, dict) and isinstance(loaded.get(w), dict)), None)
        if name is None:
            break
        loaded = loaded[name]
    else:
        raise ValueError(f"{path} nests more than {MAX_WRAPPERS} dictionaries; save the model's state_dict() alone")
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} contains a {type(loaded).__name__}, not a dictionary of tensors; save a state_dict()")
    size = path.stat().st_size
    for key, value in loaded.items():
        if not isinstance(key, str) or not is_plain(value):
            raise ValueError(
                f"{path}: {key!r} is a {type(value).__name__}, not a plain tensor; save the model's state_dict() alone"
            )
        if value.nbytes > size:
            raise ValueError(f"{path}: {key!r} repeats its elements to {value.nbytes} bytes; save it contiguous")
    return loaded


def _find_torch() -> ModuleType | None:
    try:
        import torch
    except ImportError:
        return None
    return torch


def _is_pickle(path: pathlib.Path) -> bool:
    """Returns whether a file begins like a pickle of protocol 2 or later, as PyTorch's do from before version 1.6."""
    with path.open("rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def _is_plain(torch: ModuleType, value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        return False
    return not (value.is_neg() or value.is_conj())  # views whose elements differ from the stored ones


def _load_torch(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()
