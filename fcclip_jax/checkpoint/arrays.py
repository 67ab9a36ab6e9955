"""The arrays of a checkpoint: written by orbax, read in groups that are verified before they are used."""

import concurrent.futures
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from fcclip_jax.checkpoint.record import DESCRIPTION, PARAMETERS
from fcclip_jax.command_line import causes, first_line
from fcclip_jax.process_memory import ran_out

Placed = TypeVar("Placed")

GROUP_BYTES = 2**27
"""What is read at a time: tensorstore needs the memory of a group again while it reads."""


def write_arrays(folder: epath.Path, parameters: Mapping[str, np.ndarray]) -> None:
    with _checkpointer() as checkpointer:
        checkpointer.save(folder / PARAMETERS, args=ocp.args.PyTreeSave(dict(parameters)))
    success = folder / PARAMETERS / "commit_success.txt"
    if success.exists():  # which orbax looks for in object stores
        success.write_text(
            "The arrays are complete.\n", "utf-8"
        )  # orbax's own text has the path, and checkpoints are published


def checksums(parameters: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns the sha256 of each array's bytes. With the processor's own instructions it reads 1.8 GB/s on a core."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # asarray: arithmetic turns NumPy's arrays without axes into scalars.
        return dict(zip(parameters, pool.map(_sha256, map(np.asarray, parameters.values())), strict=True))


def read_arrays(
    path: epath.Path,
    variables: Mapping[str, nnx.Variable],
    sums: Mapping[str, str] | None,
    place: Callable[[np.ndarray], Placed],
) -> dict[str, Placed]:
    """Reads exactly the variables' arrays, after checking their names, shapes and dtypes.

    sums: the recorded `checksums`; None in checkpoints of earlier versions, which are not verified.
    place: called with each verified array, in float32.

    Raises:
        ValueError: an array is missing, has another type, or does not match its checksum; or the files are damaged.
        PermissionError: a file may not be read.
        MemoryError: there is too little memory.
    """
    parameters = path / PARAMETERS
    placed: dict[str, Placed] = {}
    with _checkpointer() as checkpointer, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        with _damage_reported(parameters):
            tree = checkpointer.metadata(parameters).item_metadata.tree
            found = {name: _type_of(array, stored=True) for name, array in tree.items()}
        _check_parameters(path, found, {name: _type_of(variable) for name, variable in variables.items()})
        for names in _groups(tree):
            with _damage_reported(parameters):
                arrays = checkpointer.restore(
                    parameters,
                    args=ocp.args.PyTreeRestore(
                        item={name: tree[name] for name in names},
                        restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names},
                        partial_restore=True,
                    ),
                )
            if sums is not None:
                for name, sha256 in zip(names, pool.map(_sha256, map(arrays.get, names)), strict=True):
                    if sha256 != sums.get(name):
                        raise ValueError(
                            f"the weights in {path} are damaged: {name} does not match its checksum in {DESCRIPTION};"
                            " copy or convert the checkpoint again"
                        )
            for name in names:
                placed[name] = place(arrays.pop(name).astype(np.float32, copy=False))
    return placed


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _groups(tree: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields the names in groups whose arrays have GROUP_BYTES at most, or are a single one."""
    group: list[str] = []
    size = 0
    for name, array in tree.items():
        nbytes = np.dtype(array.dtype).itemsize * int(np.prod(array.shape))
        if group and size + nbytes > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += nbytes
    if group:
        yield group


def _checkpointer() -> ocp.Checkpointer:
    # Each of several processes reads and writes independently, without waiting for the others.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    # Trained weights hardly compress, and compression doubles the memory and the time of writing.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


@contextlib.contextmanager
def _damage_reported(parameters: epath.Path) -> Iterator[None]:
    try:
        yield
    # The errors that orbax and tensorstore raise for damaged files have no common type, and theirs of the system's are texts.
    except Exception as error:
        chain = causes(error)
        if any(ran_out(part) or "RESOURCE_EXHAUSTED" in str(part) for part in chain):
            raise MemoryError(f"not enough memory to read the weights in {parameters}") from error
        if any(isinstance(part, PermissionError) or "PERMISSION_DENIED" in str(part) for part in chain):
            raise PermissionError(
                f"the weights in {parameters} may not be read (permission denied); change the rights of these files"
            ) from error
        raise ValueError(
            f"the weights in {parameters} are damaged ({first_line(error)}); copy or convert the checkpoint again"
        ) from error


def _type_of(array: Any, *, stored: bool = False) -> str:
    """Describes an array; a `stored` one as it is read."""
    dtype = np.dtype(array.dtype)
    if stored and dtype == np.float16:
        dtype = np.dtype(np.float32)
    return f"{dtype}{list(array.shape)}"


def _check_parameters(path: epath.Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"the model has no {name}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {found[name]} instead of {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    if problems:
        raise ValueError(
            f"the weights in {path} do not fit the model that its {DESCRIPTION} describes: {_some(sorted(problems))};"
            " convert the checkpoint again"
        )


def _some(problems: Sequence[str]) -> str:
    """Lists up to ten problems."""
    rest = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
    return ", ".join([*problems[:10], *rest])
