"""Tiny models, and their weights by the official keys."""

import dataclasses
import functools
import zlib

import numpy as np

from convert import fcclip, rules
from fcclip_jax.models.building import abstract_model, named_variables
from fcclip_jax.models.descriptions import (
    ClipDescription,
    ConvNeXtDescription,
    HeadDescription,
    ModelDescription,
    ResNetDescription,
    TextDescription,
    fcclip_description,
)

_TEXT = TextDescription(width=8, heads=2, layers=2, embed_dim=12, quick_gelu=False, context_length=7, vocab_size=20)
CLIPS = {
    "convnext": ClipDescription(
        image=ConvNeXtDescription(depths=(1, 2, 3, 1), dims=(4, 8, 12, 16), embed_dim=12, head="mlp"), text=_TEXT
    ),
    "resnet": ClipDescription(
        image=ResNetDescription(layers=(1, 2, 3, 2), width=4, image_size=64, embed_dim=12), text=_TEXT
    ),
}
HEAD = HeadDescription(
    hidden_dim=32,
    mask_dim=24,
    encoder_layers=2,
    encoder_ffn_dim=20,
    sampling_points=3,
    decoder_layers=3,
    decoder_ffn_dim=28,
    num_queries=10,
)
"""All sizes differ; 8 heads, which no tensor's shape shows."""


def model_description(family: str) -> ModelDescription:
    return dataclasses.replace(fcclip_description(CLIPS[family]), head=HEAD)


def official_tensors(description: ModelDescription) -> dict[str, np.ndarray]:
    """Draws values that depend on the key only, and adds the tensors that conversion ignores."""
    return dict(_official_tensors(description))


@functools.cache
def _official_tensors(description: ModelDescription) -> dict[str, np.ndarray]:
    family = description.clip.image.family
    zeros = {
        name: np.zeros(variable.shape, np.float32)
        for name, variable in named_variables(abstract_model(description)).items()
    }
    tensors = {
        key: np.random.default_rng(zlib.crc32(key.encode())).standard_normal(array.shape, np.float32)
        for key, array in rules.to_torch(zeros, fcclip.rules(family), {}).items()
    }
    tensors["criterion.empty_weight"] = np.asarray([1, 1, 0.1], np.float32)
    for number, key in enumerate([key for key in tensors if key.endswith("running_mean")]):
        tensors[key.replace("running_mean", "num_batches_tracked")] = np.asarray(number, np.int64)
    return tensors
