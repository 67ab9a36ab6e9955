"""A checkpoint in memory."""

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from fcclip_jax.models import description_json
from fcclip_jax.models.descriptions import ClipDescription, ModelDescription
from fcclip_jax.text.vocabulary import Vocabulary


class Origin(NamedTuple):
    """The file that weights were converted from: its name (or OpenCLIP's tag) and checksum."""

    name: str
    sha256: str


class Checkpoint(NamedTuple):
    """The contents of a checkpoint directory, in host memory."""

    description: ModelDescription | ClipDescription
    parameters: Mapping[str, np.ndarray]
    training_vocabulary: Vocabulary | None
    """None for a checkpoint of CLIP alone."""
    text_sha256: str
    """`text_fingerprint` of the weights."""
    source: Origin
    clip_source: Origin | None
    """The origin of CLIP's weights, if they were not in `source`."""
    ignored: Mapping[str, np.ndarray]
    """PyTorch tensors that the model does not use, kept for converting back."""
    known_words: tuple[str, ...] | None = None
    """The only words that CLIP was trained with; None for a CLIP that takes any words."""


def text_fingerprint(
    description: ModelDescription | ClipDescription, parameters: Mapping[str, np.ndarray | jax.Array]
) -> str:
    """Returns the sha256 of everything that affects the text tower's results: the key of cached embeddings."""
    clip = description.clip if isinstance(description, ModelDescription) else description
    sizes = description_json.to_json(clip)["text"]
    if sizes["token_ids"] is None:
        # Fingerprints from before the field existed stay valid.
        del sizes["token_ids"]
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    for name in sorted(parameters):
        if name.startswith("clip.text."):
            array = np.ascontiguousarray(parameters[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
