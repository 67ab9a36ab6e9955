"""Random weights, to try things out. They are drawn on the host: nothing is compiled, and platforms do not differ."""

import math
import zlib

import numpy as np
from flax import nnx
from jaxtyping import Float

from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import ModelDescription
from fcclip_jax.models.fcclip import FCCLIP

EMBEDDINGS = ("token_embedding", "query_feat", "query_embed", "level_embed", "void_embedding", "sampling_offsets.bias")


def random_model(description: ModelDescription, seed: int = 0) -> FCCLIP:
    """Builds a model whose activations keep their size from layer to layer, and whose masks are neither empty nor full.

    Training starts from the layers' own initialisers instead, with which a fresh ConvNeXt's blocks are nearly the
    identity.
    """
    model = nnx.eval_shape(lambda: FCCLIP(description, rngs=nnx.Rngs(0)))
    for name, variable in named_variables(model).items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        variable.set_value(_draw(rng, name, variable.shape))
    return model


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    own_rank = len(shape) - (".stacked." in name)
    if name.endswith("logit_scale"):
        return np.full(shape, math.log(1 / 0.07), np.float32)
    if name.endswith("gamma"):
        return np.full(shape, 0.3, np.float32)
    if name.endswith(EMBEDDINGS):
        return rng.standard_normal(shape, np.float32)
    if own_rank == 1:
        return np.full(shape, float(name.endswith(("weight", "running_var"))), np.float32)
    drawn = rng.standard_normal(shape, np.float32)
    # Each output ignores the mean of its inputs, such as a ReLU's: otherwise all queries would have the same class.
    drawn -= drawn.mean(axis=-2, keepdims=True)
    return drawn / np.float32(math.sqrt(math.prod(shape[-own_rank:-1])))
