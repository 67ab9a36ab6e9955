"""PyTorch's weight files, read without running anything that they hold, and written."""

import hashlib
import os
import pathlib
import uuid
import zipfile
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  jax brings it, and NumPy learns bfloat16 from it
import numpy as np
import safetensors
import safetensors.numpy

from fcclip_jax.checkpoint import Origin
from fcclip_jax.files import check_space

WRAPPERS = ("model", "state_dict")
"""Entries under which training codes put the weights, beside optimisers and counters."""
PREFIXES = ("module.", "model.")
"""What DistributedDataParallel and other wrappers put before every key."""
SAFETENSORS_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


class Tensor(NamedTuple):
    """A tensor of a file, to be loaded when it is wanted. Half precision loads as float32."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


class Weights(NamedTuple):
    """An opened file."""

    source: Origin
    tensors: dict[str, Tensor]
    size: int
    """of the file, in bytes"""


def read(path: pathlib.Path, *, name: str | None = None) -> Weights:
    """Opens a .safetensors file, or anything that torch.save wrote; the source's `name` is the file's unless given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no plain tensors, or would run code, or the package that reads it is missing.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the file in it that holds the weights")
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}; check the path")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    while prefix := next((p for p in PREFIXES if tensors and all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    if not tensors:
        raise ValueError(f"{path} holds no tensors; give the file with the model's weights")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Weights(Origin(name or path.name, sha256), tensors, path.stat().st_size)


def check_free(path: pathlib.Path, *, overwrite: bool) -> None:
    """Raises FileExistsError if there is something at `path` that may not be overwritten, ValueError for its suffix."""
    if path.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"the output {path} must end in .safetensors or .pth")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for the output; make it first")
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} exists already; choose another name" + (", or add --overwrite") * path.is_file())


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes .safetensors, or .pth with the tensors under `model`, under a temporary name that becomes `path`.

    Raises:
        OSError: it cannot be written, the disk being full for example; nothing is left behind.
        ValueError: .pth is asked for and PyTorch is missing.
    """
    torch = _import_torch(path) if path.suffix == ".pth" else None
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        check_space(path.parent, sum(array.nbytes for array in tensors.values()))
        if torch is None:
            temporary.touch()
            mode = temporary.stat().st_mode
            safetensors.numpy.save_file(dict(tensors), temporary)
            temporary.chmod(mode)  # safetensors makes files that only their owner may read
        else:
            torch.save({"model": {key: torch.from_numpy(array) for key, array in tensors.items()}}, temporary)
        os.replace(temporary, path)
    # Neither library passes the system's own error on.
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {_first_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
    tensors = {}
    try:
        file = safetensors.safe_open(path, "np")
        for key in file.keys():  # noqa: SIM118  a safe_open cannot be iterated over
            about = file.get_slice(key)
            if about.get_dtype() not in SAFETENSORS_DTYPES:
                raise ValueError(f"{path}: {key} has dtype {about.get_dtype()}; save the weights as float32 first")
            tensors[key] = Tensor(tuple(about.get_shape()), lambda key=key: _widened(file.get_tensor(key)))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one ({_first_line(error)})") from None
    return tensors


def _read_torch(path: pathlib.Path) -> dict[str, Tensor]:
    torch = _import_torch(path)
    zipped = zipfile.is_zipfile(path)
    if not zipped and not _is_pickle(path):
        raise ValueError(f"{path} is no file of PyTorch's, or one that was cut short; fetch it again")
    try:
        if zipped and _is_torchscript(path):
            raise ValueError(
                f"{path} is a TorchScript archive, which is a program; save its state_dict() from PyTorch and convert that"
            )
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        loaded = torch.load(path, weights_only=True, mmap=zipped, map_location="cpu")
    except (OSError, ValueError):
        raise
    # PyTorch refuses what could run code with one type of error, and stumbles over a damaged file with any other.
    except Exception as error:
        raise ValueError(
            f"{path} is refused: it is damaged, or holds more than plain tensors, and such files can run code; save the"
            " model's state_dict() alone, best as .safetensors"
        ) from error
    while isinstance(loaded, dict) and (name := next((w for w in WRAPPERS if isinstance(loaded.get(w), dict)), None)):
        loaded = loaded[name]
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors; save a state_dict()")
    for key, value in loaded.items():
        if not isinstance(key, str) or not _is_plain(torch, value):
            raise ValueError(
                f"{path}: {key!r} is a {type(value).__name__}, not a plain tensor; save the model's state_dict() alone"
            )
    return {key: Tensor(tuple(value.shape), lambda value=value: _widened_torch(value)) for key, value in loaded.items()}


def _import_torch(path: pathlib.Path) -> ModuleType:
    try:
        import torch
    except ImportError:
        raise ValueError(f"{path} needs PyTorch: pip install torch, or use a .safetensors file") from None
    return torch


def _is_pickle(path: pathlib.Path) -> bool:
    """Files from before PyTorch 1.6 begin like a pickle of protocol 2 or later."""
    with path.open("rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def _is_torchscript(path: pathlib.Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _is_plain(torch: ModuleType, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized


def _widened_torch(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
