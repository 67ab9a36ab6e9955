"""The model that training starts from: CLIP's weights under a new head, or a whole FC-CLIP to fine-tune."""

import dataclasses
import os

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from fcclip_jax import checkpoint, weights
from fcclip_jax.checkpoint import Checkpoint, Origin, text_fingerprint
from fcclip_jax.conventions import RANDOM_WEIGHTS
from fcclip_jax.models import descriptions
from fcclip_jax.models.building import abstract_model, named_variables, with_values
from fcclip_jax.models.descriptions import ClipDescription, HeadDescription, ModelDescription
from fcclip_jax.models.fcclip import FCCLIP
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.structs import TextClassifier
from fcclip_jax.text.embeddings import TextEncoder
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.world import clip as world_clip
from fcclip_jax.world.panoptic import WORLD

EMPTY_WEIGHT = "criterion.empty_weight"
"""The official checkpoint's key for the classes' weights in the loss."""


def model_description(clip: str, head: HeadDescription) -> ModelDescription:
    """Returns the description of a configuration's model.

    clip: as in `clip_of_config`.

    Raises:
        ValueError: no CLIP has that name.
    """
    towers = clip_of_config(clip)
    if clip == WORLD:
        return ModelDescription(clip=towers, head=head, ensemble=world_clip.ENSEMBLE, defaults=world_clip.DEFAULTS)
    return dataclasses.replace(descriptions.fcclip_description(towers), head=head)


def clip_of_config(name: str) -> ClipDescription:
    """Returns the description of a configuration's towers.

    name: OpenCLIP's, "world" for the CLIP of the miniature world, "world_vit" for its rival with a vision transformer, or
        "small", which only has random weights.

    Raises:
        ValueError: no CLIP has that name.
    """
    if name == WORLD:
        return world_clip.clip_description()
    if name == f"{WORLD}_vit":
        return world_clip.vit_description()
    return descriptions.SMALL.clip if name == "small" else descriptions.clip_description(name)


def starting_point(
    init: str | os.PathLike[str],
    description: ModelDescription,
    vocabulary: Vocabulary,
    *,
    seed: int,
    void_weight: float,
) -> Checkpoint:
    """Returns the whole model before the first step, in host memory.

    init: a checkpoint of a CLIP, which gets a new head; a checkpoint of an FC-CLIP, whose head is kept, such as
        "world"; either by the name of published weights (see `weights.find`); or "random".

    Raises:
        FileNotFoundError: the checkpoint `init` does not exist.
        ValueError: the checkpoint's model is not the one described.
    """
    if init == RANDOM_WEIGHTS:
        start = named_variables(random_model(description, seed))
        found = Checkpoint(
            description.clip,
            {name: np.asarray(value[...]) for name, value in start.items() if name.startswith("clip.")},
            training_vocabulary=None,
            text_sha256="",
            source=Origin(f"random weights, seed {seed}", ""),
            clip_source=None,
            ignored={},
        )
    elif not init:
        raise ValueError(
            f"init is empty; give a checkpoint of a CLIP (`{checkpoint.convert_command()} openclip` makes one), or"
            f" {RANDOM_WEIGHTS!r}"
        )
    else:
        found = checkpoint.read(weights.find(init))
        _check_description(init, found, description)
    whole = isinstance(found.description, ModelDescription)
    if whole:
        # A fine-tuned model segments as the model that it was.
        description = dataclasses.replace(description, defaults=found.description.defaults)
    parameters = dict(found.parameters) if whole else {**found.parameters, **initial_head(description, seed)}
    class_weights = np.ones(len(vocabulary.classes) + 1, np.float32)
    class_weights[-1] = void_weight
    return Checkpoint(
        description,
        parameters,
        vocabulary,
        text_fingerprint(description, parameters),
        source=Origin("trained by fcclip_jax", ""),
        clip_source=found.clip_source or found.source,
        ignored={**found.ignored, EMPTY_WEIGHT: class_weights},
        known_words=found.known_words,
    )


def initial_head(description: ModelDescription, seed: int) -> dict[str, Float[np.ndarray, "..."]]:
    """Draws all parameters but CLIP's, from the distributions that PyTorch's official modules start from."""

    @jax.jit
    def draw() -> dict[str, jax.Array]:
        variables = named_variables(FCCLIP(description, rngs=nnx.Rngs(seed)))
        return {name: value[...] for name, value in variables.items() if not name.startswith("clip.")}

    return jax.device_get(draw())


def full_model(start: Checkpoint) -> FCCLIP:
    """Builds the model with the starting point's values, on this process's first device."""
    abstract = abstract_model(start.description)
    return with_values(abstract, jax.device_put(dict(start.parameters), jax.local_devices()[0]))


def training_classifier(start: Checkpoint, cache_dir: os.PathLike[str] | None) -> TextClassifier:
    """Embeds the training vocabulary with the text tower. The classifier is not padded: its vocabulary is fixed."""
    vocabulary = start.training_vocabulary
    tower = full_model(start).clip.text
    embeddings = TextEncoder(tower, fingerprint=start.text_sha256, cache_dir=cache_dir).embed(vocabulary)
    return TextClassifier(
        embeddings,
        np.asarray(vocabulary.groups, np.int32),
        np.ones(len(vocabulary.classes), bool),
        np.asarray(len(vocabulary.classes), np.int32),
    )


def _check_description(init: str | os.PathLike[str], found: Checkpoint, expected: ModelDescription) -> None:
    whole = isinstance(found.description, ModelDescription)
    clip = found.description.clip if whole else found.description
    if clip != expected.clip:
        raise ValueError(
            f"the CLIP in {init} is not the configuration's model.clip: {clip_difference(clip, expected.clip)}"
        )
    if whole and found.description.head != expected.head:
        raise ValueError(
            f"the head in {init} is not the configuration's model.head: {_difference(found.description.head, expected.head)}"
        )


def clip_difference(found: ClipDescription, expected: ClipDescription) -> str:
    """Describes the first field that differs, and how to convert a CLIP again whose GELU alone differs."""
    quick = expected.text.quick_gelu
    text = _difference(found, expected)
    if dataclasses.replace(found, text=dataclasses.replace(found.text, quick_gelu=quick)) == expected:
        option = "--quick-gelu" if quick else "--no-quick-gelu"
        text += (
            "; a weight file does not say which it was trained with: if it was"
            f" {'QuickGELU' if quick else 'the exact GELU'}, convert it again with {option}"
        )
    return text


def _difference(found: object, expected: object) -> str:
    """Describes the first field that differs."""
    pairs = zip(_flat(found), _flat(expected), strict=False)
    (name, value), (_, other) = next((pair for pair in pairs if pair[0] != pair[1]), (("its sizes", "?"), ("", "?")))
    return f"{name} is {value}, not {other}"


def _flat(description: object, prefix: str = "") -> list[tuple[str, object]]:
    rows = []
    for name, value in vars(description).items():
        rows += _flat(value, f"{prefix}{name}.") if hasattr(value, "__dict__") else [(prefix + name, value)]
    return rows
