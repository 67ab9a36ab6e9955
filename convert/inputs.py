"""Reads the inputs of the commands: weights, model descriptions, vocabularies."""

import dataclasses
import functools
import json
import pathlib
import sys
from typing import NamedTuple

import numpy as np
from etils import epath

from fcclip_jax import checkpoint, progress
from fcclip_jax.models import description_json, descriptions
from fcclip_jax.models.descriptions import ClipDescription, ModelDescription
from fcclip_jax.text.vocabulary import Vocabulary, shipped

from . import PROG, fcclip, open_clip, rules, tags, weight_files

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


class Table(NamedTuple):
    """The conversion table of a model."""

    rules: list[rules.Rule]
    ignored: list[rules.Ignored]


def table_of(description: ModelDescription | ClipDescription) -> Table:
    """Returns the table of a whole FC-CLIP, or of a CLIP alone."""
    if isinstance(description, ModelDescription):
        return Table(fcclip.rules(description.clip.image.family), fcclip.IGNORED)
    return Table(open_clip.rules(description.image.family), open_clip.IGNORED)


def read_weights(path: pathlib.Path, *, name: str | None = None) -> weight_files.Weights:
    """Opens a weight file as `weight_files.read` does, and prints its size."""
    if path.is_file():
        say_step(f"reading {path}, {in_units(path.stat().st_size)}")
    weights = weight_files.read(path, name=name)
    print(f"read {path}: {len(weights.tensors)} tensors, {in_units(weights.size)}", flush=True)
    return weights


class Clip(NamedTuple):
    """CLIP's weights, by OpenCLIP's keys, and what their source records of them."""

    weights: weight_files.Weights
    quick_gelu: bool | None
    """Whether they were trained with QuickGELU; None if the source does not record it."""
    known_words: tuple[str, ...] | None
    """The only words that they were trained with; None for any words, or if the source does not record it."""


def read_clip(where: str, model: str) -> Clip:
    """Reads CLIP's weights.

    where: OpenCLIP's tag, a weight file, or a checkpoint of CLIP alone.
    """
    if epath.Path(where).is_dir():
        contents = checkpoint.read(where)
        if not isinstance(contents.description, ClipDescription):
            raise ValueError(f"{where} contains a whole FC-CLIP; give a CLIP alone, which `{PROG} openclip` makes")
        arrays = rules.to_torch(contents.parameters, table_of(contents.description).rules, contents.ignored)
        tensors = {
            key: weight_files.Tensor(array.shape, functools.partial(np.asarray, array)) for key, array in arrays.items()
        }
        weights = weight_files.Weights(contents.source, tensors, 0)
        return Clip(weights, contents.description.text.quick_gelu, contents.known_words)
    path = pathlib.Path(where)
    if path.exists() or path.suffix in WEIGHT_SUFFIXES:
        return Clip(read_weights(path), None, None)
    print(f"downloading OpenCLIP's weights {where} of {model}, if they are not cached", flush=True)
    pretrained = tags.download(model, where)
    return Clip(read_weights(pretrained.path, name=where), pretrained.quick_gelu, None)


def read_description(model: str, override: bool | None, quick_gelu: bool) -> ModelDescription | ClipDescription:
    """Returns the description of a CLIP model by OpenCLIP's name, or reads one from a json file.

    override: --quick-gelu or --no-quick-gelu, None without either.
    quick_gelu: the default for a name; a file states its own.

    Raises:
        ValueError: the name is unknown, or the file is not a description.
    """
    if not model.endswith(".json"):
        name = model.removesuffix("-quickgelu")
        chosen = override if override is not None else quick_gelu or name != model
        return descriptions.clip_description(name, quick_gelu=chosen)
    try:
        record = json.loads(pathlib.Path(model).read_text("utf-8-sig"))
        whole = isinstance(record, dict) and "clip" in record
        description = description_json.model_from_json(record) if whole else description_json.clip_from_json(record)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{model}: {error}") from None
    if override is None:
        return description
    if isinstance(description, ModelDescription):
        return dataclasses.replace(description, clip=_with_gelu(description.clip, override))
    return _with_gelu(description, override)


def read_vocabulary(name: str) -> Vocabulary:
    """Returns a shipped vocabulary by its name, or reads one from a json file."""
    if name in shipped():
        return Vocabulary.load(name)
    if not name.endswith(".json"):
        raise ValueError(f"the vocabulary {name!r} does not exist; give a json file, or one of {', '.join(shipped())}")
    try:
        return Vocabulary.from_json(pathlib.Path(name).read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def say_step(step: str) -> None:
    """Prints what is done next, on stderr: with gigabytes, each step takes a while."""
    progress.write(step, file=sys.stderr)
    sys.stderr.flush()


def in_units(size: int) -> str:
    """Writes a number of bytes in MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def _with_gelu(clip: ClipDescription, quick: bool) -> ClipDescription:
    return dataclasses.replace(clip, text=dataclasses.replace(clip.text, quick_gelu=quick))
