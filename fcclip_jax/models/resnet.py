"""CLIP's ResNet trunk with attention pooling (OpenCLIP's modified_resnet.py)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.conventions import STRIDE
from fcclip_jax.models.descriptions import ResNetDescription
from fcclip_jax.models.features import Features
from fcclip_jax.models.layers import Conv, Linear, Stack, add_dims, unit_normal, wide_dtype
from fcclip_jax.models.padding import valid_mask


class BatchNorm(nnx.Module):
    """Batch normalisation with frozen statistics, in at least float32: CLIP stays in evaluation mode while the head trains."""

    def __init__(self, features: int):
        self.weight = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.running_mean = nnx.Param(jnp.zeros(features))
        self.running_var = nnx.Param(jnp.ones(features))

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        wide = x.astype(wide_dtype(x))
        scale = self.weight[...] * jax.lax.rsqrt(self.running_var[...] + 1e-5)
        shift = self.bias[...] - self.running_mean[...] * scale
        return (wide * add_dims(scale, wide) + add_dims(shift, wide)).astype(x.dtype)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions with a residual. A stride is an average pool before the last convolution."""

    def __init__(
        self,
        in_dim: int,
        width: int,
        *,
        stride: int = 1,
        downsample: bool = False,
        rngs: nnx.Rngs,
    ):
        self.conv1 = Conv(in_dim, width, 1, bias=False, rngs=rngs)
        self.bn1 = BatchNorm(width)
        self.conv2 = Conv(width, width, 3, padding=1, bias=False, rngs=rngs)
        self.bn2 = BatchNorm(width)
        self.conv3 = Conv(width, 4 * width, 1, bias=False, rngs=rngs)
        self.bn3 = BatchNorm(4 * width)
        self.downsample_conv = Conv(in_dim, 4 * width, 1, bias=False, rngs=rngs) if downsample else None
        self.downsample_bn = BatchNorm(4 * width) if downsample else None
        self.stride = stride

    def __call__(self, x: Float[Array, "B H W I"], mask: Float[Array, "B H W 1"]) -> Float[Array, "B h w C"]:
        """Applies the block.

        mask: 0 beyond the image, at the resolution of `x`: the 3x3 convolution reads zeros there.
        """
        y = jax.nn.relu(self.bn1(self.conv1(x))) * mask
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(average_pool(y, self.stride)))
        if self.downsample_conv is not None:
            x = self.downsample_bn(self.downsample_conv(average_pool(x, self.stride)))
        return jax.nn.relu(x + y)


class Layer(nnx.Module):
    """The blocks of one resolution: a first one that changes the shape, then equal ones."""

    def __init__(self, in_dim: int, width: int, depth: int, stride: int, *, rngs: nnx.Rngs):
        self.first = Bottleneck(in_dim, width, stride=stride, downsample=True, rngs=rngs)
        self.rest = Stack(lambda rngs: Bottleneck(4 * width, width, rngs=rngs), depth - 1, rngs=rngs)
        self.stride = stride

    def __call__(self, x: Float[Array, "B H W I"], mask: Float[Array, "B H W 1"]) -> Float[Array, "B h w C"]:
        x = self.first(x, mask)
        return self.rest(x, mask[:, :: self.stride, :: self.stride])


class AttentionPool(nnx.Module):
    """CLIP's attention pooling, restricted to masks as in FC-CLIP (modeling/backbone/clip.py)."""

    def __init__(self, grid: int, dim: int, heads: int, embed_dim: int, *, rngs: nnx.Rngs):
        self.positional_embedding = nnx.Param(unit_normal(rngs.params(), (grid * grid + 1, dim)) / dim**0.5)
        self.q_proj = Linear(dim, dim, rngs=rngs)
        self.k_proj = Linear(dim, dim, rngs=rngs)
        self.v_proj = Linear(dim, dim, rngs=rngs)
        self.c_proj = Linear(dim, embed_dim, rngs=rngs)
        self.grid, self.heads = grid, heads

    def __call__(
        self,
        features: Float[Array, "B h w C"],
        valid_hw: Int[Array, "B 2"],
        masks: Bool[Array, "B h w Q"],
    ) -> Float[Array, "B Q E"]:
        """Pools the features under each mask.

        Unlike CLIP's own pooling, keys and values are the spatial features alone, without the mean token. An empty mask
        gives c_proj's bias. The result is at least float32.
        """
        batch, h, w, dim = features.shape
        dtype, wide = features.dtype, wide_dtype(features)
        valid = valid_mask(valid_hw, (h, w), STRIDE)[..., None].astype(wide)
        mean = jnp.sum(features.astype(wide) * valid, axis=(1, 2)) / jnp.sum(valid, axis=(1, 2))
        query = self.q_proj((mean + self.positional_embedding[0].astype(wide)[None]).astype(dtype))
        tokens = (features.astype(wide) + self.positions(valid_hw, (h, w), wide)).astype(dtype)
        tokens = tokens.reshape(batch, h * w, dim)
        key, value = self.k_proj(tokens), self.v_proj(tokens)

        def split_heads(x):
            return x.reshape(*x.shape[:-1], self.heads, -1)

        scale = (dim // self.heads) ** -0.5
        query, key = split_heads(query * scale), split_heads(key)
        logits = jnp.einsum("bmd,bnmd->bnm", query, key, preferred_element_type=wide)[:, :, :, None]
        inside = (masks & (valid > 0)).reshape(batch, h * w, 1, -1)
        # The softmax over a mask's cells, after subtracting the largest logit inside that mask.
        largest = jnp.max(jnp.where(inside, logits, -jnp.inf), axis=1, keepdims=True)
        largest = jnp.where(jnp.isfinite(largest), largest, jnp.zeros_like(largest))
        weights = jnp.where(inside, jnp.exp(logits - largest), jnp.zeros_like(logits))
        total = jnp.sum(weights, axis=1)
        pooled = jnp.einsum("bnmq,bnmd->bqmd", weights.astype(dtype), split_heads(value), preferred_element_type=wide)
        pooled = pooled / jnp.maximum(total, jnp.finfo(wide).tiny).swapaxes(1, 2)[..., None]
        return self.c_proj(pooled.reshape(batch, -1, dim).astype(dtype), wide=True)

    def positions(
        self, valid_hw: Int[Array, "B 2"], shape: tuple[int, int], dtype: jnp.dtype
    ) -> Float[Array, "B h w C"]:
        """Resizes the spatial position table bilinearly (align_corners=False) to each image's own grid."""
        table = self.positional_embedding[1:].astype(dtype).reshape(self.grid, self.grid, -1)

        def interpolation(length: int, valid: Int[Array, " B"]) -> Float[Array, "B length grid"]:
            scale = self.grid / (valid // STRIDE).astype(dtype)
            source = (jnp.arange(length, dtype=dtype) + 0.5)[None, :] * scale[:, None] - 0.5
            source = jnp.clip(source, 0, self.grid - 1)[:, :, None]
            return jnp.maximum(1 - jnp.abs(source - jnp.arange(self.grid, dtype=dtype)[None, None, :]), 0)

        rows, columns = (interpolation(n, valid_hw[:, axis]) for axis, n in enumerate(shape))
        return jnp.einsum("byi,bxj,ijc->byxc", rows, columns, table)


class ResNet(nnx.Module):
    """The image tower: dense features at four strides, and attention pooling."""

    stride = STRIDE

    def __init__(self, description: ResNetDescription, *, rngs: nnx.Rngs):
        width = description.width
        self.conv1 = Conv(3, width // 2, 3, stride=2, padding=1, bias=False, rngs=rngs)
        self.bn1 = BatchNorm(width // 2)
        self.conv2 = Conv(width // 2, width // 2, 3, padding=1, bias=False, rngs=rngs)
        self.bn2 = BatchNorm(width // 2)
        self.conv3 = Conv(width // 2, width, 3, padding=1, bias=False, rngs=rngs)
        self.bn3 = BatchNorm(width)
        in_dims = [width] + [width * 4 << i for i in range(3)]
        self.layers = nnx.List(
            [
                Layer(in_dim, width << i, depth, 1 if i == 0 else 2, rngs=rngs)
                for i, (in_dim, depth) in enumerate(zip(in_dims, description.layers, strict=True))
            ]
        )
        self.attnpool = AttentionPool(
            description.image_size // STRIDE,
            width * 32,
            description.heads,
            description.embed_dim,
            rngs=rngs,
        )

    def stem(self, images: Float[Array, "B H W 3"], mask: Float[Array, "B h w 1"]) -> Float[Array, "B h w C"]:
        """Maps normalised images to features at stride 2; `mask` is at stride 2."""
        x = jax.nn.relu(self.bn1(self.conv1(images))) * mask
        x = jax.nn.relu(self.bn2(self.conv2(x))) * mask
        return jax.nn.relu(self.bn3(self.conv3(x)))

    def __call__(self, images: Float[Array, "B H W 3"], valid_hw: Int[Array, "B 2"]) -> Features:
        """Returns dense features of normalised images. Beyond `valid_hw` images are zero, but features are not."""

        def mask_at(stride: int) -> Float[Array, "B h w 1"]:
            shape = (images.shape[1] // stride, images.shape[2] // stride)
            return valid_mask(valid_hw, shape, stride)[..., None].astype(images.dtype)

        x = average_pool(self.stem(images, mask_at(2)), 2)
        outputs = []
        for layer, stride_in in zip(self.layers, (4, 4, 8, 16), strict=True):
            x = layer(x, mask_at(stride_in))
            outputs.append(x)
        return Features(*outputs, clip_dense=outputs[-1])

    def embed_masks(
        self, clip_dense: Float[Array, "B h w C"], valid_hw: Int[Array, "B 2"], masks: Bool[Array, "B h w Q"]
    ) -> Float[Array, "B Q E"]:
        """Embeds each mask in CLIP's joint space, by CLIP's own attention pooling restricted to the mask."""
        return self.attnpool(clip_dense, valid_hw, masks)


def average_pool(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B h w C"]:
    """Averages size x size cells."""
    if size == 1:
        return x
    batch, h, w, channels = x.shape
    return jnp.mean(x.reshape(batch, h // size, size, w // size, size, channels), axis=(2, 4))
