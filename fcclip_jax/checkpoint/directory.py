"""A checkpoint directory: written whole or not at all, read into host memory or onto the device."""

import contextlib
import hashlib
import os
import time
import uuid
from typing import Literal, NamedTuple, cast

import jax
import numpy as np
from etils import epath
from flax import nnx

from fcclip_jax.checkpoint.arrays import checksums, read_arrays, write_arrays
from fcclip_jax.checkpoint.contents import Checkpoint, text_fingerprint
from fcclip_jax.checkpoint.record import DESCRIPTION, convert_command, read_record, write_record
from fcclip_jax.command_line import first_line
from fcclip_jax.conventions import WORLD_WEIGHTS
from fcclip_jax.files import check_space, check_writable
from fcclip_jax.models.building import abstract_model, named_variables
from fcclip_jax.models.descriptions import ClipDescription, ModelDescription
from fcclip_jax.models.fcclip import FCCLIP
from fcclip_jax.text.vocabulary import Vocabulary

PACKAGED_WORLD = epath.resource_path("fcclip_jax") / "world" / "checkpoint"


class Loaded(NamedTuple):
    """A model with its weights on the device."""

    model: FCCLIP
    description: ModelDescription
    training_vocabulary: Vocabulary
    sha256: str
    """Identifies the checkpoint: of its description, which holds the checksums of its arrays."""
    text_sha256: str
    known_words: tuple[str, ...] | None


def resolve(path: str | os.PathLike[str]) -> epath.Path:
    """Returns an absolute path, local or on any storage that etils.epath supports, such as gs://.

    Raises:
        ValueError: the storage needs a package that is not installed, or is of another kind.
    """
    try:
        resolved = epath.Path(path).expanduser()
    except KeyError as error:
        raise ValueError(
            f"{os.fspath(path)} is on no storage that can be read ({error.args[0]}); give a folder, or an address on gs:// or s3://"
        ) from None
    if "://" not in os.fspath(resolved):
        return resolved.resolve()
    try:
        resolved.exists()
    except ImportError as error:
        raise ValueError(
            f"{resolved} needs a package that is not installed ({first_line(error)}): pip install 'etils[epath-gcs]'"
        ) from None
    return resolved


def find(path: str | os.PathLike[str]) -> epath.Path:
    """Returns the directory to read: `resolve(path)`, or the package's own for the name "world" if no such path exists.

    Raises:
        FileNotFoundError: the name is "world", and the package has no such checkpoint.
        ValueError: as `resolve`.
    """
    folder = resolve(path)
    if os.fspath(path) != WORLD_WEIGHTS or folder.exists():
        return folder
    if not PACKAGED_WORLD.exists():
        raise FileNotFoundError(f"this installation has no weights named {WORLD_WEIGHTS}")
    return PACKAGED_WORLD


def save(
    path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    *,
    overwrite: bool = False,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes the directory under a temporary name and renames it, so that an incomplete checkpoint is never visible.

    dtype: of the stored parameters. float16 takes half the space and keeps 11 significant bits; values below 6e-5 keep
        fewer.

    Raises:
        ValueError, FileExistsError: as `check_free`; or a parameter has values too large for float16.
        OSError: the directory cannot be written, because the disk is full for example; nothing is left behind.
    """
    folder = resolve(path)
    check_free(folder, overwrite=overwrite)
    if dtype == "float16":
        checkpoint = _halved(checkpoint)
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    temporary = _sibling(folder, "tmp")
    try:
        temporary.mkdir(parents=True)
        check_space(temporary, sum(array.nbytes for array in checkpoint.parameters.values()))
        write_arrays(temporary, checkpoint.parameters)
        write_record(temporary, checkpoint, checksums(checkpoint.parameters))
        _put_in_place(temporary, folder)
    # Tensorstore reports the file system's errors as ValueError, orbax as several types.
    except Exception as error:
        raise OSError(f"the checkpoint {folder} cannot be written: {first_line(error)}") from error
    finally:
        _remove(temporary)
        if not folder.exists():
            for parent in new_parents:
                with contextlib.suppress(OSError):
                    parent.rmdir()


def _halved(checkpoint: Checkpoint) -> Checkpoint:
    halves = {}
    for name, array in checkpoint.parameters.items():
        with np.errstate(over="ignore"):  # the check below names the parameter
            halves[name] = array.astype(np.float16)
        if not np.isfinite(halves[name][np.isfinite(array)]).all():
            largest = np.abs(array[np.isfinite(array)]).max()
            raise ValueError(
                f"{name} has values up to {largest:.3g}, but float16 holds {np.finfo(np.float16).max:.0f} at most; store"
                " the checkpoint as float32"
            )
    # Rounded text weights give other embeddings, so they need another key in the cache.
    rounded = {name: array.astype(np.float32) for name, array in halves.items() if name.startswith("clip.text.")}
    return checkpoint._replace(parameters=halves, text_sha256=text_fingerprint(checkpoint.description, rounded))


def check_free(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Checks that `save` may write to a path.

    Raises:
        FileExistsError: the path exists, and `overwrite` is False.
        ValueError: the path exists and is not a checkpoint.
        OSError: the path cannot be written.
    """
    folder = resolve(path)
    if not folder.exists():
        check_writable(folder)
        return
    if not overwrite:
        raise FileExistsError(f"the output {folder} exists already; choose another name, or overwrite it (--overwrite)")
    replaceable = folder.is_dir() and ((folder / DESCRIPTION).exists() or not any(folder.iterdir()))
    if not replaceable:
        raise ValueError(f"the output {folder} is not a checkpoint, so it is not overwritten; choose another name")


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint of either kind into host memory.

    path: a directory, or "world"; see `find`.

    Raises:
        FileNotFoundError: the path does not exist, or is not a checkpoint.
        ValueError: the path is a file, or the checkpoint is damaged.
    """
    folder = find(path)
    contents, sums = read_record(folder)
    variables = named_variables(_abstract_model(folder, contents.description))
    return contents._replace(parameters=read_arrays(folder, variables, sums, lambda array: array))


def has_checksums(path: str | os.PathLike[str]) -> bool:
    """Returns whether a checkpoint's arrays have checksums, which `read` and `load` then verify.

    Raises:
        FileNotFoundError, ValueError: as `read`.
    """
    return read_record(find(path)).sums is not None


def load(path: str | os.PathLike[str]) -> Loaded:
    """Loads an FC-CLIP onto the device, without compiling anything.

    path: a checkpoint directory, local or on any storage that etils.epath supports, such as gs://; or "world", see `find`.

    Raises:
        FileNotFoundError, ValueError: as `read`; or the checkpoint contains a CLIP alone.
    """
    folder = find(path)
    contents, sums = read_record(folder)
    if not isinstance(contents.description, ModelDescription) or contents.training_vocabulary is None:
        raise ValueError(
            f"{folder} contains a CLIP alone, without FC-CLIP's head; combine it with an FC-CLIP checkpoint, and load"
            f" the result: {convert_command()} fcclip --clip {folder} --checkpoint FILE --model MODEL --output DIR"
        )
    model = _abstract_model(folder, contents.description)
    variables = named_variables(model)
    device = jax.local_devices()[0]
    arrays = read_arrays(folder, variables, sums, lambda array: jax.device_put(array, device))
    for name, variable in variables.items():
        variable.set_value(arrays[name])
    return Loaded(
        cast(FCCLIP, model),
        contents.description,
        contents.training_vocabulary,
        hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest(),
        contents.text_sha256,
        contents.known_words,
    )


def _sibling(path: epath.Path, suffix: str) -> epath.Path:
    return path.parent / f".{path.name}.{uuid.uuid4().hex}.{suffix}"


def _remove(folder: epath.Path) -> None:
    """Removes a folder, repeatedly: after a failure, orbax's threads may still write files into it for a moment."""
    for _ in range(20):
        if not folder.exists():
            return
        with contextlib.suppress(OSError):
            folder.rmtree()
        time.sleep(0.1)


def _put_in_place(temporary: epath.Path, path: epath.Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    old = _sibling(path, "old")
    path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    old.rmtree()


def _abstract_model(path: epath.Path, description: ModelDescription | ClipDescription) -> nnx.Module:
    try:
        return abstract_model(description)
    except ValueError as error:
        raise ValueError(f"{path / DESCRIPTION}: {error}") from None
