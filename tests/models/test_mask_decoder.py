"""The mask decoder's two forms of the same layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.models.features import PixelFeatures
from fcclip_jax.models.random_weights import random_model


def test_unrolled_layers_are_those_of_the_scan():
    """Two rounds over the levels, and one layer more."""
    head = dataclasses.replace(SMALL.head, decoder_layers=7)
    decoder = random_model(dataclasses.replace(SMALL, head=head)).mask_decoder
    rng = np.random.default_rng(0)
    sizes = ((16, 24), (2, 3), (4, 6), (8, 12))
    mask_features, *levels = (jnp.asarray(rng.standard_normal((1, *size, 64)), jnp.float32) for size in sizes)
    pixels, valid_hw = PixelFeatures(mask_features, tuple(levels)), jnp.asarray([[64, 96]], jnp.int32)

    def run() -> list[jax.Array]:
        graphdef, state = nnx.split(decoder)
        return jax.jit(lambda state: nnx.merge(graphdef, state)(pixels, valid_hw))(state)

    scanned = run()
    decoder.unrolled = True
    unrolled = run()
    assert len(scanned) == len(unrolled) == 1 + 7
    for one, other in zip(scanned, unrolled, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)  # rounding: normalised queries are of order one
    assert np.abs(scanned[-1] - scanned[1]).max() > 0.1
