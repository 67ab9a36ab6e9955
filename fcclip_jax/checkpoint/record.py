"""Writes fcclip.json, the description inside a checkpoint directory, and reads it without trusting it."""

import base64
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from fcclip_jax.checkpoint.contents import Checkpoint, Origin
from fcclip_jax.command_line import first_line
from fcclip_jax.models import description_json
from fcclip_jax.models.descriptions import ModelDescription
from fcclip_jax.text.vocabulary import Vocabulary

FORMAT = 1
DESCRIPTION, PARAMETERS = "fcclip.json", "params"
INDEX_BYTES = 2**20
"""Files below this size, which include all of orbax's indexes, have a checksum of their own: a damaged index makes tensorstore
fail in many threads, with as many tracebacks."""


def convert_command() -> str:
    """Returns the command that converts checkpoints: fcclip-convert, or python -m convert if it is not installed."""
    return "fcclip-convert" if importlib.util.find_spec("fcclip_jax.convert") else "python -m convert"


class Record(NamedTuple):
    """What fcclip.json says."""

    contents: Checkpoint
    """All but the parameters."""
    sums: Mapping[str, str] | None
    """The sha256 of each parameter's bytes as they are stored; None in checkpoints of earlier versions."""


def write_record(path: epath.Path, checkpoint: Checkpoint, sums: Mapping[str, str]) -> None:
    """Writes the description into the directory `path`, which has the parameters already.

    sums: see `Record`.
    """
    sizes = _file_sizes(path / PARAMETERS)
    record = {
        **_to_json(checkpoint),
        "files": sizes,
        "files_sha256": {name: _file_sum(path, name) for name, size in sizes.items() if size < INDEX_BYTES},
        "parameters_sha256": sums,
    }
    (path / DESCRIPTION).write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def read_record(path: epath.Path) -> Record:
    """Reads all but the parameters, and checks that no file below `path` is missing or truncated.

    Raises:
        FileNotFoundError: `path` does not exist, or contains no description.
        ValueError: `path` is a file, or the checkpoint is damaged or has another format.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"the checkpoint {path} does not exist; check the path, choose a name from `fcclip weights`, or make one from a"
            f" file with `{convert_command()} fcclip`"
        )
    if not path.is_dir():
        raise ValueError(
            f"{path} is a file, not a checkpoint directory; convert it first:"
            f" {convert_command()} fcclip --checkpoint {path} --model MODEL --output DIR"
        )
    file = path / DESCRIPTION
    if not file.exists():
        raise FileNotFoundError(f"{path} is not a checkpoint: it has no {DESCRIPTION}; {_suggest(path)}")
    try:
        record = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({first_line(error)}); convert the checkpoint again") from None
    try:
        contents = _from_json(record)
        # Checkpoints of earlier versions have no checksums.
        sums = _parse_sums(record, "parameters_sha256")
        file_sums = _parse_sums(record, "files_sha256") or {}
    except ValueError as error:
        raise ValueError(f"{file}: {first_line(error)}") from None
    found = _file_sizes(path / PARAMETERS)
    for name, size in record["files"].items():
        if found.get(name) != size:
            state = f"has {found[name]} bytes instead of {size}" if name in found else "is missing"
            raise ValueError(f"{path / PARAMETERS / name} {state}; copy or convert the checkpoint again")
    for name in found.keys() & file_sums.keys():
        if _file_sum(path, name) != file_sums[name]:
            raise ValueError(
                f"{path / PARAMETERS / name} does not match its checksum in {DESCRIPTION}; copy or convert the checkpoint again"
            )
    return Record(contents, sums)


def _suggest(path: epath.Path) -> str:
    """Returns advice for a folder without a description, which may belong to a training run."""
    runs = (folder for folder in (path, *path.parents[:2]) if (folder / "start" / DESCRIPTION).exists())
    run = next(runs, None)
    if run is None:
        return "give the folder that contains it"
    convert = f"make one of this training run: `{convert_command()} run --run {run} --output DIR`"
    return f"give {run / 'final'}, or {convert}" if (run / "final").exists() else convert


def _file_sizes(folder: epath.Path) -> dict[str, int]:
    """Returns the size of each file below: orbax reports truncated or missing files unclearly, or not at all."""
    files = [parent / name for parent, _, names in folder.walk() for name in names]
    return {file.relative_to(folder).as_posix(): file.stat().length for file in files}


def _file_sum(path: epath.Path, name: str) -> str:
    return hashlib.sha256((path / PARAMETERS / name).read_bytes()).hexdigest()


def _to_json(checkpoint: Checkpoint) -> dict[str, Any]:
    vocabulary = checkpoint.training_vocabulary
    return {
        "format": FORMAT,
        "kind": "fcclip" if isinstance(checkpoint.description, ModelDescription) else "clip",
        "description": description_json.to_json(checkpoint.description),
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
        "known_words": checkpoint.known_words,
    }


def _from_json(record: Any) -> Checkpoint:
    match record:
        case {"format": version} if version != FORMAT:
            raise ValueError(
                f"the checkpoint has format {version!r:.80}, but this version of fcclip_jax reads format {FORMAT};"
                " install the newest version"
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
            parse = description_json.model_from_json if kind == "fcclip" else description_json.clip_from_json
            return Checkpoint(
                description=parse(description),
                parameters={},
                training_vocabulary=None if vocabulary is None else Vocabulary.from_json(json.dumps(vocabulary)),
                text_sha256=text_sha256,
                source=_origin(source),
                clip_source=clip_source and _origin(clip_source),
                ignored={key: _parse_array(key, value) for key, value in ignored.items()},
                known_words=_parse_words(record.get("known_words")),  # missing in checkpoints of earlier versions
            )
    raise ValueError("an entry of the description is missing or malformed; convert the checkpoint again")


def _parse_words(words: Any) -> tuple[str, ...] | None:
    if words is None:
        return None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError(f"known_words is {words!r:.80}, not a list of words; convert the checkpoint again")
    return tuple(words)


def _parse_sums(record: Mapping[str, Any], key: str) -> dict[str, str] | None:
    sums = record.get(key)
    if sums is not None and not (isinstance(sums, dict) and all(isinstance(value, str) for value in sums.values())):
        raise ValueError(f"{key} is {sums!r:.80}, not checksums by name; convert the checkpoint again")
    return sums


def _origin(record: Mapping[str, str]) -> Origin:
    return Origin(record["name"], record["sha256"])


def _parse_array(key: str, record: Any) -> np.ndarray:
    try:
        data = base64.b64decode(record["base64"], validate=True)
        return np.frombuffer(data, np.dtype(record["dtype"])).reshape(record["shape"]).copy()
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"the tensor {key!r} is malformed; convert the checkpoint again") from None
