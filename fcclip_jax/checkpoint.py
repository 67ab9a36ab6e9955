"""Checkpoints: a directory that describes itself, so that loading one needs no configuration.

    fcclip.json   what the weights are: sizes, the vocabulary of their training, where they come from
    params/       orbax: a flat dictionary of arrays by `named_variables`

A `clip` checkpoint holds the two CLIP towers alone, an `fcclip` one the whole model; names are the same in both.
"""

import base64
import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from fcclip_jax.files import check_space, check_writable
from fcclip_jax.models import descriptions
from fcclip_jax.models.building import abstract_model, named_variables
from fcclip_jax.models.descriptions import ClipDescription, ModelDescription
from fcclip_jax.models.fcclip import FCCLIP
from fcclip_jax.reporting import first_line
from fcclip_jax.text.vocabulary import Vocabulary

FORMAT = 1
DESCRIPTION, PARAMETERS = "fcclip.json", "params"


class Origin(NamedTuple):
    """The file that weights were converted from: its name (or OpenCLIP's tag) and check sum."""

    name: str
    sha256: str


class Checkpoint(NamedTuple):
    """The contents of a checkpoint directory, on the host."""

    description: ModelDescription | ClipDescription
    parameters: Mapping[str, np.ndarray]
    training_vocabulary: Vocabulary | None
    """None for a CLIP alone."""
    text_sha256: str
    """`text_fingerprint` of the weights."""
    source: Origin
    clip_source: Origin | None
    """Where CLIP's weights come from, if they were not in `source`."""
    ignored: Mapping[str, np.ndarray]
    """PyTorch tensors that the model has no use for, kept for the way back."""


class Loaded(NamedTuple):
    """A model with its weights on the device."""

    model: FCCLIP
    description: ModelDescription
    training_vocabulary: Vocabulary
    text_sha256: str


def text_fingerprint(
    description: ModelDescription | ClipDescription, parameters: Mapping[str, np.ndarray | jax.Array]
) -> str:
    """The sha256 of everything that decides what the text tower answers: the key of cached embeddings."""
    clip = description.clip if isinstance(description, ModelDescription) else description
    digest = hashlib.sha256(json.dumps(descriptions.to_json(clip)["text"], sort_keys=True).encode())
    for name in sorted(parameters):
        if name.startswith("clip.text."):
            array = np.ascontiguousarray(parameters[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def save(path: str | os.PathLike[str], checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Writes the directory under a temporary name and renames it, so that no half of a checkpoint is ever seen.

    Raises:
        ValueError, FileExistsError: as `check_free`.
        OSError: it cannot be written, the disk being full for example; nothing is left behind.
    """
    path = resolve(path)
    check_free(path, overwrite=overwrite)
    new_parents = [folder for folder in path.parents if not folder.exists()]
    temporary = _sibling(path, "tmp")
    try:
        temporary.mkdir(parents=True)
        check_space(temporary, sum(array.nbytes for array in checkpoint.parameters.values()))
        with _checkpointer() as checkpointer:
            checkpointer.save(temporary / PARAMETERS, args=ocp.args.PyTreeSave(dict(checkpoint.parameters)))
        record = {**_to_json(checkpoint), "files": _file_sizes(temporary / PARAMETERS)}
        (temporary / DESCRIPTION).write_text(json.dumps(record, indent=1) + "\n")
        _put_in_place(temporary, path)
    # Tensorstore reports what the file system says as a ValueError, orbax as this or that.
    except Exception as error:
        raise OSError(f"the checkpoint {path} cannot be written: {first_line(error)}") from error
    finally:
        _remove(temporary)
        if not path.exists():
            for folder in new_parents:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def check_free(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raises FileExistsError if something is there already; with `overwrite`, ValueError if that is no checkpoint.

    And OSError if nothing can be written there.
    """
    path = resolve(path)
    if not path.exists():
        check_writable(path)
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists already; choose another name, or ask for it to be overwritten")
    replaceable = path.is_dir() and ((path / DESCRIPTION).exists() or not any(path.iterdir()))
    if not replaceable:
        raise ValueError(f"{path} is not a checkpoint, so it will not be overwritten; choose another name")


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint of either kind, in host memory.

    Raises:
        FileNotFoundError: there is no checkpoint there.
        ValueError: what is there is no checkpoint, or a damaged one.
    """
    path = resolve(path)
    contents = _read_description(path)
    variables = named_variables(_abstract_model(path, contents.description))
    return contents._replace(parameters=_restore(path, variables, ocp.RestoreArgs(restore_type=np.ndarray)))


def load(path: str | os.PathLike[str]) -> Loaded:
    """The FC-CLIP in a checkpoint directory, local or anywhere that etils.epath reads (gs://); compiles nothing.

    Raises:
        FileNotFoundError, ValueError: as `read`; and if the checkpoint holds a CLIP alone.
    """
    path = resolve(path)
    contents = _read_description(path)
    if not isinstance(contents.description, ModelDescription):
        raise ValueError(
            f"{path} holds a CLIP alone, without FC-CLIP's head; give it to `python -m convert fcclip --clip {path}`"
            " together with an FC-CLIP checkpoint, and load the result"
        )
    model = _abstract_model(path, contents.description)
    variables = named_variables(model)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    arrays = _restore(path, variables, ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=device))
    for name, variable in variables.items():
        variable.set_value(arrays[name])
    return Loaded(model, contents.description, contents.training_vocabulary, contents.text_sha256)


def _checkpointer() -> ocp.Checkpointer:
    # One of several processes reads and writes on its own, without waiting for the others.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    # Trained weights hardly compress, and trying doubles the memory and the time of writing.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def resolve(path: str | os.PathLike[str]) -> epath.Path:
    """An absolute path, local or anywhere that etils.epath reads. Raises ValueError if that needs another package."""
    path = epath.Path(path).expanduser()
    if "://" not in os.fspath(path):
        return path.resolve()
    try:
        path.exists()
    except ImportError as error:
        raise ValueError(
            f"{path} needs another package ({first_line(error)}): pip install 'etils[epath-gcs]'"
        ) from None
    return path


def _sibling(path: epath.Path, suffix: str) -> epath.Path:
    return path.parent / f".{path.name}.{uuid.uuid4().hex}.{suffix}"


def _remove(folder: epath.Path) -> None:
    """After a failure, writing threads that have not noticed it may put a file back for a moment."""
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


def _restore(
    path: epath.Path, variables: Mapping[str, nnx.Variable], how: ocp.RestoreArgs
) -> dict[str, np.ndarray | jax.Array]:
    """Exactly the arrays that the variables want."""
    parameters = path / PARAMETERS
    with _checkpointer() as checkpointer:
        with _damage_reported(parameters):
            tree = checkpointer.metadata(parameters).item_metadata.tree
            found = {name: _about(array) for name, array in tree.items()}
        _check_parameters(path, found, {name: _about(variable) for name, variable in variables.items()})
        with _damage_reported(parameters):
            return checkpointer.restore(parameters, args=ocp.args.PyTreeRestore(restore_args=dict.fromkeys(found, how)))


@contextlib.contextmanager
def _damage_reported(parameters: epath.Path) -> Iterator[None]:
    try:
        yield
    # A stranger's folder, or a damaged one: what orbax and tensorstore raise then has no common type.
    except Exception as error:
        raise ValueError(
            f"the weights in {parameters} cannot be read ({first_line(error)}); the checkpoint is damaged:"
            " convert it again"
        ) from error


def _about(array: Any) -> str:
    return f"{np.dtype(array.dtype)}{list(array.shape)}"


def _check_parameters(path: epath.Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not known to the model" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {found[name]} instead of {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    if problems:
        raise ValueError(
            f"the weights in {path} are not those of the model that {DESCRIPTION} describes: {_some(sorted(problems))};"
            " convert the checkpoint again"
        )


def _some(problems: Iterable[str], limit: int = 10) -> str:
    problems = list(problems)
    rest = [f"and {len(problems) - limit} more"] if len(problems) > limit else []
    return ", ".join(problems[:limit] + rest)


def _to_json(checkpoint: Checkpoint) -> dict[str, Any]:
    vocabulary = checkpoint.training_vocabulary
    return {
        "format": FORMAT,
        "kind": "fcclip" if isinstance(checkpoint.description, ModelDescription) else "clip",
        "description": descriptions.to_json(checkpoint.description),
        "source": checkpoint.source._asdict(),
        "clip_source": checkpoint.clip_source and checkpoint.clip_source._asdict(),
        "text_sha256": checkpoint.text_sha256,
        "training_vocabulary": vocabulary and json.loads(vocabulary.to_json()),
        "ignored": {
            key: {
                "dtype": array.dtype.name,
                "shape": array.shape,
                "base64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
            }
            for key, array in checkpoint.ignored.items()
        },
    }


def _read_description(path: epath.Path) -> Checkpoint:
    """Everything but the parameters."""
    if not path.exists():
        raise FileNotFoundError(
            f"there is no checkpoint at {path}; `python -m convert` makes one of the official weights"
        )
    if not path.is_dir():
        raise ValueError(
            f"{path} is a file, not a checkpoint directory; convert it first:"
            f" python -m convert fcclip --checkpoint {path} --model MODEL --output DIRECTORY"
        )
    file = path / DESCRIPTION
    if not file.exists():
        told = "give the folder that holds one"
        if run := next(
            (folder for folder in (path, *path.parents[:2]) if (folder / "start" / DESCRIPTION).exists()), None
        ):
            trained = f"{run / 'final'} is, and " if (run / "final").exists() else ""
            told = f"{trained}`python -m convert run --run {run} --output DIR` makes one of a training run's"
        raise FileNotFoundError(f"{path} is not a checkpoint: it has no {DESCRIPTION}; {told}")
    try:
        record = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({first_line(error)}); convert the checkpoint again") from None
    try:
        contents = _from_json(record)
    except ValueError as error:
        raise ValueError(f"{file}: {first_line(error)}") from None
    found = _file_sizes(path / PARAMETERS)
    for name, size in record["files"].items():
        if found.get(name) != size:
            have = f"has {found[name]} bytes instead of {size}" if name in found else "is missing"
            raise ValueError(f"{path / PARAMETERS / name} {have}; copy or convert the checkpoint again")
    return contents


def _file_sizes(folder: epath.Path) -> dict[str, int]:
    """Of every file below: orbax reports one that is cut short or missing less clearly, or not at all."""
    files = [parent / name for parent, _, names in folder.walk() for name in names]
    return {file.relative_to(folder).as_posix(): file.stat().length for file in files}


def _from_json(record: Any) -> Checkpoint:
    match record:
        case {"format": version} if version != FORMAT:
            raise ValueError(
                f"the checkpoint has format {version!r:.80}, this fcclip_jax reads {FORMAT}; install the newest"
            )
        case {
            "format": _,
            "kind": "fcclip" | "clip" as kind,
            "description": dict(description),
            "source": {"name": str(), "sha256": str()} as source,
            "clip_source": None | {"name": str(), "sha256": str()} as clip_source,
            "text_sha256": str(text_sha256),
            "training_vocabulary": None | dict() as vocabulary,
            "ignored": dict(ignored),
            "files": {**files},
        } if files and (kind == "fcclip") == (vocabulary is not None):
            parse = descriptions.model_from_json if kind == "fcclip" else descriptions.clip_from_json
            return Checkpoint(
                description=parse(description),
                parameters={},
                training_vocabulary=None if vocabulary is None else Vocabulary.from_json(json.dumps(vocabulary)),
                text_sha256=text_sha256,
                source=_source(source),
                clip_source=clip_source and _source(clip_source),
                ignored={key: _parse_array(key, value) for key, value in ignored.items()},
            )
    raise ValueError(
        "this does not describe a checkpoint: an entry is missing or garbled; convert the checkpoint again"
    )


def _source(record: Mapping[str, str]) -> Origin:
    return Origin(record["name"], record["sha256"])


def _parse_array(key: str, record: Any) -> np.ndarray:
    try:
        data = base64.b64decode(record["base64"], validate=True)
        return np.frombuffer(data, np.dtype(record["dtype"])).reshape(record["shape"]).copy()
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"the tensor {key!r} is garbled; convert the checkpoint again") from None
