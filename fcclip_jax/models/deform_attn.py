"""Multi-scale deformable attention (Deformable DETR), as the pixel decoder's self-attention."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fcclip_jax.models.layers import Linear, wide_dtype, xavier_uniform
from pallas_kernels import ms_deform_attn

SAMPLED = "sampled"
"""The checkpoint name of the weighted sums of samples."""


class DeformableAttention(nnx.Module):
    """Attention of each token to a few points around itself on every level (ops/modules/ms_deform_attn.py)."""

    def __init__(self, features: int, heads: int, levels: int, points: int, *, rngs: nnx.Rngs):
        self.sampling_offsets = Linear(features, heads * levels * points * 2, init=nnx.initializers.zeros, rngs=rngs)
        self.sampling_offsets.bias.set_value(_ring_of_offsets(heads, levels, points))
        self.attention_weights = Linear(features, heads * levels * points, init=nnx.initializers.zeros, rngs=rngs)
        self.value_proj = Linear(features, features, init=xavier_uniform, rngs=rngs)
        self.output_proj = Linear(features, features, init=xavier_uniform, rngs=rngs)
        self.heads, self.levels, self.points = heads, levels, points
        self.precision: str | None = None
        """Precision of the TPU kernel's products, as in `ms_deform_attn`: None is exact, "bfloat16" is faster."""

    def __call__(
        self,
        query: Float[Array, "B N C"],
        tokens: Float[Array, "B N C"],
        reference: Float[Array, " N 2"],
        mask: Float[Array, "B N 1"],
        shapes: tuple[tuple[int, int], ...],
    ) -> Float[Array, "B N C"]:
        """Attends from `query` to `tokens`.

        Outside the image values are zero, as the sampler reads outside the official code's feature map.

        reference: each token's centre, as (x, y) in [0, 1] of the bucket.
        mask: 0 on padding, else 1.
        shapes: (height, width) of each level.
        """
        batch, count, _ = query.shape
        value = (self.value_proj(tokens) * mask).reshape(batch, count, self.heads, -1)
        # In bfloat16, locations on a level of 128 columns would be half a column apart.
        dtype = wide_dtype(query)
        offsets = self.sampling_offsets(query, wide=True)
        offsets = offsets.reshape(batch, count, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query, wide=True).reshape(batch, count, self.heads, -1)
        weights = jax.nn.softmax(weights, axis=-1).reshape(offsets.shape[:-1])
        # Offsets are in pixels of the level that they sample.
        level_wh = jnp.asarray([(w, h) for h, w in shapes], dtype)[None, None, None, :, None, :]
        locations = reference[None, :, None, None, None, :].astype(dtype) + offsets / level_wh
        sampled = checkpoint_name(ms_deform_attn(value, locations, weights, shapes, precision=self.precision), SAMPLED)
        return self.output_proj(sampled.reshape(batch, count, -1))


def _ring_of_offsets(heads: int, levels: int, points: int) -> Float[Array, " O"]:
    """Returns the initial offsets: one direction a head, on a square around the token, one ring further out a point."""
    angle = jnp.arange(heads, dtype=jnp.float32) * (2 * jnp.pi / heads)
    direction = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    direction = direction / jnp.max(jnp.abs(direction), axis=-1, keepdims=True)
    ring = jnp.arange(1, points + 1, dtype=jnp.float32)[None, None, :, None]
    return jnp.broadcast_to(direction[:, None, None, :] * ring, (heads, levels, points, 2)).reshape(-1)
