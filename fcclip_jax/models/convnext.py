"""The ConvNeXt trunk of a CLIP model, with its visual head (timm's ConvNeXt under OpenCLIP's TimmModel)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.conventions import STRIDE
from fcclip_jax.models.classifiers import mask_pool
from fcclip_jax.models.depthwise import depthwise_conv
from fcclip_jax.models.descriptions import ConvNeXtDescription
from fcclip_jax.models.features import Features
from fcclip_jax.models.layers import Conv, LayerNorm, Linear, Stack, add_dims, by_rows, gelu, torch_default
from fcclip_jax.models.padding import valid_mask


class Block(nnx.Module):
    """ConvNeXt's residual block: x + gamma * fc2(gelu(fc1(norm(depthwise(x)))))."""

    def __init__(self, dim: int, kernel_size: int, eps: float, *, rngs: nnx.Rngs):
        self.conv_dw = Depthwise(dim, kernel_size, rngs=rngs)
        self.norm = LayerNorm(dim, eps=eps, rngs=rngs)
        self.fc1 = Linear(dim, 4 * dim, rngs=rngs)
        self.fc2 = Linear(4 * dim, dim, rngs=rngs)
        self.gamma = nnx.Param(jnp.full(dim, 1e-6))

    def __call__(self, x: Float[Array, "B h w C"], mask: Float[Array, "B h w 1"]) -> Float[Array, "B h w C"]:
        y = by_rows(self.mlp, self.norm(self.conv_dw(x * mask)))
        return x + y * add_dims(self.gamma[...], y)

    def mlp(self, x: Float[Array, "N C"]) -> Float[Array, "N C"]:
        """Mixes the channels of each position."""
        return self.fc2(gelu(self.fc1(x)))


class Depthwise(nnx.Module):
    """A k x k convolution of each channel on its own, 7 x 7 in the official models. `weight` is [k, k, C]."""

    def __init__(self, dim: int, kernel_size: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(torch_default(rngs.params(), (kernel_size, kernel_size, 1, dim))[:, :, 0])
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        return depthwise_conv(x, self.weight[...].astype(x.dtype)) + add_dims(self.bias[...], x)


class Stage(nnx.Module):
    """Halves the resolution (except in the first stage), then applies equal blocks."""

    def __init__(self, in_dim: int, dim: int, depth: int, kernel_size: int, eps: float, *, first: bool, rngs: nnx.Rngs):
        self.downsample_norm = None if first else LayerNorm(in_dim, eps=eps, rngs=rngs)
        self.downsample_conv = None if first else Conv(in_dim, dim, 2, stride=2, rngs=rngs)
        self.blocks = Stack(lambda rngs: Block(dim, kernel_size, eps, rngs=rngs), depth, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W I"], mask: Float[Array, "B h w 1"]) -> Float[Array, "B h w C"]:
        if self.downsample_norm is not None:
            x = self.downsample_conv(self.downsample_norm(x))
        return self.blocks(x, mask)


class ConvNeXt(nnx.Module):
    """The image tower: dense features at four strides, and CLIP's head for pooled ones."""

    stride = STRIDE

    def __init__(self, description: ConvNeXtDescription, *, rngs: nnx.Rngs):
        dims, eps = description.dims, description.norm_eps
        self.stem_conv = Conv(3, dims[0], 4, stride=4, rngs=rngs)
        self.stem_norm = LayerNorm(dims[0], eps=eps, rngs=rngs)
        self.stages = nnx.List(
            [
                Stage(dims[max(i - 1, 0)], dims[i], depth, kernel_size, eps, first=i == 0, rngs=rngs)
                for i, (depth, kernel_size) in enumerate(zip(description.depths, description.kernel_sizes, strict=True))
            ]
        )
        self.head_norm = LayerNorm(dims[-1], eps=eps, rngs=rngs)
        hidden, embed = 2 * description.embed_dim, description.embed_dim
        if description.head == "mlp":
            self.head_fc1 = Linear(dims[-1], hidden, rngs=rngs)
            self.head_fc2 = Linear(hidden, embed, bias=False, rngs=rngs)
        else:
            self.head_proj = Linear(dims[-1], embed, bias=False, rngs=rngs)
        self.head_kind = description.head

    def stem(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Maps normalised images to features at stride 4."""
        return self.stem_norm(self.stem_conv(images))

    def __call__(self, images: Float[Array, "B H W 3"], valid_hw: Int[Array, "B 2"]) -> Features:
        """Returns dense features of normalised images. Cells beyond `valid_hw` are arbitrary."""
        x, outputs = self.stem(images), []
        for i, stage in enumerate(self.stages):
            stride = 4 << i
            shape = (images.shape[1] // stride, images.shape[2] // stride)
            mask = valid_mask(valid_hw, shape, stride)[..., None].astype(x.dtype)
            x = stage(x, mask)
            outputs.append(x)
        # timm's norm_pre is the identity in these models, whose norm is in the head: the dense features are res5.
        return Features(*outputs, clip_dense=outputs[-1])

    def embed_masks(
        self, clip_dense: Float[Array, "B h w C"], valid_hw: Int[Array, "B 2"], masks: Bool[Array, "B h w Q"]
    ) -> Float[Array, "B Q E"]:
        """Embeds each mask in CLIP's joint space, in at least float32: its mean feature, through CLIP's own head."""
        inside = masks & valid_mask(valid_hw, masks.shape[1:3], STRIDE)[..., None]
        x = self.head_norm(mask_pool(clip_dense, inside))
        if self.head_kind == "mlp":
            return self.head_fc2(gelu(self.head_fc1(x)), wide=True)
        return self.head_proj(x, wide=True)
