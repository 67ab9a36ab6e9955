"""The pixel decoder: deformable attention over three levels, then one step of a feature pyramid (msdeformattn.py)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fcclip_jax.conventions import MASK_STRIDE
from fcclip_jax.models.deform_attn import SAMPLED, DeformableAttention
from fcclip_jax.models.descriptions import HeadDescription
from fcclip_jax.models.features import Features, PixelFeatures
from fcclip_jax.models.layers import (
    Conv,
    GroupNorm,
    LayerNorm,
    Linear,
    Stack,
    by_rows,
    c2_xavier,
    sine_positions,
    unit_normal,
    wide_dtype,
    xavier_uniform,
)
from fcclip_jax.models.padding import valid_mask

LEVEL_STRIDES = (32, 16, 8)
"""Strides of the levels, from coarse to fine: res5, res4, res3."""

KEPT = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names(SAMPLED)
)
"""What an encoder layer keeps for its gradient: the results of products and of the sampler. The rest, which is cheap to
recompute, takes as much memory again."""


class EncoderLayer(nnx.Module):
    """Deformable self-attention and feed-forward, each post-norm."""

    def __init__(self, description: HeadDescription, *, rngs: nnx.Rngs):
        dim, ffn_dim = description.hidden_dim, description.encoder_ffn_dim
        self.self_attn = DeformableAttention(
            dim, description.heads, len(LEVEL_STRIDES), description.sampling_points, rngs=rngs
        )
        self.norm1 = LayerNorm(dim, rngs=rngs)
        self.linear1 = Linear(dim, ffn_dim, init=xavier_uniform, rngs=rngs)
        self.linear2 = Linear(ffn_dim, dim, init=xavier_uniform, rngs=rngs)
        self.norm2 = LayerNorm(dim, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "B N C"],
        positions: Float[Array, "B N C"],
        reference: Float[Array, " N 2"],
        mask: Float[Array, "B N 1"],
        shapes: tuple[tuple[int, int], ...],
    ) -> Float[Array, "B N C"]:
        def apply(tokens, positions):
            tokens = self.norm1(tokens + self.self_attn(tokens + positions, tokens, reference, mask, shapes))
            return self.norm2(tokens + by_rows(self.feed_forward, tokens))

        return jax.checkpoint(apply, policy=KEPT, prevent_cse=False)(tokens, positions)

    def feed_forward(self, tokens: Float[Array, "N C"]) -> Float[Array, "N C"]:
        """Applies the feed-forward network to each token."""
        return self.linear2(jax.nn.relu(self.linear1(tokens)))


class NormedConv(nnx.Module):
    """A convolution without bias, then group normalisation: detectron2's Conv2d with a norm."""

    def __init__(self, in_dim: int, dim: int, kernel: int, *, rngs: nnx.Rngs):
        self.conv = Conv(in_dim, dim, kernel, padding=kernel // 2, bias=False, init=c2_xavier, rngs=rngs)
        self.norm = GroupNorm(dim, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w I"], mask: Float[Array, "B h w 1"]) -> Float[Array, "B h w C"]:
        return self.norm(self.conv(x * mask), mask)


class InputProjection(nnx.Module):
    """Projects a level's features to the hidden size: 1x1 convolution with bias, then group normalisation."""

    def __init__(self, in_dim: int, dim: int, *, rngs: nnx.Rngs):
        self.conv = Conv(in_dim, dim, 1, init=xavier_uniform, rngs=rngs)
        self.norm = GroupNorm(dim, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w I"], mask: Float[Array, "B h w 1"]) -> Float[Array, "B h w C"]:
        return self.norm(self.conv(x), mask)


class PixelDecoder(nnx.Module):
    """Turns trunk features into per-pixel embeddings at stride 4, and three levels for the mask decoder."""

    def __init__(self, feature_dims: tuple[int, int, int, int], description: HeadDescription, *, rngs: nnx.Rngs):
        dim = description.hidden_dim
        self.input_proj = nnx.List([InputProjection(d, dim, rngs=rngs) for d in reversed(feature_dims[1:])])
        self.level_embed = nnx.Param(unit_normal(rngs.params(), (len(LEVEL_STRIDES), dim)))
        self.layers = Stack(lambda rngs: EncoderLayer(description, rngs=rngs), description.encoder_layers, rngs=rngs)
        self.adapter = NormedConv(feature_dims[0], dim, 1, rngs=rngs)
        self.fpn = NormedConv(dim, dim, 3, rngs=rngs)
        self.mask_features = Conv(dim, description.mask_dim, 1, init=c2_xavier, rngs=rngs)

    def __call__(self, features: Features, valid_hw: Int[Array, "B 2"]) -> PixelFeatures:
        tokens, positions, reference, mask, shapes = self.flatten(features, valid_hw)
        tokens = self.layers(tokens, positions, reference, mask, shapes)
        levels = self.unflatten(tokens, shapes)
        return PixelFeatures(self.pyramid(features.res2, levels[-1], valid_hw), levels)

    def flatten(self, features: Features, valid_hw: Int[Array, "B 2"]):
        """Returns the encoder's inputs: tokens, positions, reference points (x, y), mask, level shapes (h, w).

        Reference points are at least float32, the others have the features' dtype.
        """
        inputs = (features.res5, features.res4, features.res3)
        shapes = tuple((x.shape[1], x.shape[2]) for x in inputs)
        batch, dtype, wide = inputs[0].shape[0], inputs[0].dtype, wide_dtype(inputs[0])
        tokens, positions, references, masks = [], [], [], []
        for i, (x, (h, w), stride) in enumerate(zip(inputs, shapes, LEVEL_STRIDES, strict=True)):
            mask = valid_mask(valid_hw, (h, w), stride)[..., None].astype(dtype)
            projected = self.input_proj[i](x, mask)
            position = sine_positions(valid_hw, (h, w), stride, projected.shape[-1], wide)
            position = (position + self.level_embed[i].astype(wide)[None, None, None, :]).astype(dtype)
            centre_y, centre_x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
            tokens.append(projected.reshape(batch, h * w, -1))
            positions.append(position.reshape(batch, h * w, -1))
            references.append(np.stack([centre_x, centre_y], axis=-1).reshape(h * w, 2).astype(wide))
            masks.append(mask.reshape(batch, h * w, 1))
        join = [jnp.concatenate(parts, axis=-2) for parts in (tokens, positions, references, masks)]
        return *join, shapes

    def unflatten(self, tokens: Float[Array, "B N C"], shapes: tuple[tuple[int, int], ...]) -> tuple[Array, ...]:
        """Splits tokens into one [B, h, w, C] map a level."""
        starts = [sum(h * w for h, w in shapes[:i]) for i in range(1, len(shapes))]
        parts = jnp.split(tokens, starts, axis=1)
        return tuple(
            part.reshape(part.shape[0], h, w, part.shape[-1]) for part, (h, w) in zip(parts, shapes, strict=True)
        )

    def pyramid(
        self, res2: Float[Array, "B H W I"], finest: Float[Array, "B h w C"], valid_hw: Int[Array, "B 2"]
    ) -> Float[Array, "B H W D"]:
        """Adds the upsampled finest level to res2, and returns per-pixel mask embeddings."""
        mask = valid_mask(valid_hw, (res2.shape[1], res2.shape[2]), MASK_STRIDE)[..., None].astype(res2.dtype)
        joined = self.adapter(res2, mask) + upsample_twice(finest, valid_hw // LEVEL_STRIDES[-1])
        return self.mask_features(jax.nn.relu(self.fpn(joined, mask)))


def upsample_twice(x: Float[Array, "B h w C"], valid: Int[Array, "B 2"]) -> Float[Array, "B H W C"]:
    """Doubles the resolution bilinearly (align_corners=False), clamping at the edge of the image.

    valid: the image's rows and columns in `x`; no cell beyond them is read.
    """

    def along(x: Float[Array, "B h w C"], axis: int) -> Float[Array, "B h2 w2 C"]:
        index = jnp.arange(x.shape[axis], dtype=valid.dtype)

        def neighbour(step: int) -> Float[Array, "B h w C"]:
            source = jnp.clip(index[None, :] + step, 0, valid[:, axis - 1 : axis] - 1)
            shape = (x.shape[0], -1, 1, 1) if axis == 1 else (x.shape[0], 1, -1, 1)
            return jnp.take_along_axis(x, source.reshape(shape), axis=axis)

        even = 0.75 * x + 0.25 * neighbour(-1)
        odd = 0.75 * x + 0.25 * neighbour(1)
        doubled = [n * (2 if i == axis else 1) for i, n in enumerate(x.shape)]
        return jnp.stack([even, odd], axis=axis + 1).reshape(doubled)

    return along(along(x.astype(wide_dtype(x)), 1), 2).astype(x.dtype)
