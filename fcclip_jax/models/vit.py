"""CLIP's vision transformer (OpenCLIP's VisionTransformer) with dense features: the paper's rival of a ConvNeXt in table 9.

Its whole-image embedding is the mean of the patches' tokens (OpenCLIP's pool_type "avg" with final_ln_after_pool), not the
class token, so that it is trained with the pooling by which masks are classified, as a ConvNeXt is.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.models.classifiers import mask_pool
from fcclip_jax.models.descriptions import ViTDescription
from fcclip_jax.models.features import DenseFeatures
from fcclip_jax.models.layers import Conv, LayerNorm, Stack, unit_normal, wide_dtype
from fcclip_jax.models.padding import valid_mask
from fcclip_jax.models.transformer import ResidualAttentionBlock


class VisionTransformer(nnx.Module):
    """The image tower: dense features at the stride of its patches, and CLIP's head for pooled ones."""

    def __init__(self, description: ViTDescription, *, rngs: nnx.Rngs):
        width, self.stride = description.width, description.patch_size
        self.grid = description.image_size // self.stride

        def draw(*shape: int) -> nnx.Param:
            return nnx.Param(width**-0.5 * unit_normal(rngs.params(), shape))

        self.patch_conv = Conv(3, width, self.stride, stride=self.stride, bias=False, rngs=rngs)
        self.class_embedding = draw(width)
        self.positional_embedding = draw(self.grid * self.grid + 1, width)
        self.ln_pre = LayerNorm(width, rngs=rngs)
        self.resblocks = Stack(
            lambda rngs: ResidualAttentionBlock(width, description.heads, rngs=rngs), description.layers, rngs=rngs
        )
        self.ln_post = LayerNorm(width, rngs=rngs)
        self.image_projection = draw(width, description.embed_dim)

    def __call__(self, images: Float[Array, "B H W 3"], valid_hw: Int[Array, "B 2"]) -> DenseFeatures:
        """Returns the last layer's tokens of all patches of normalised images. Cells beyond `valid_hw` are arbitrary."""
        patches = self.patch_conv(images)
        batch, h, w, width = patches.shape
        patches = patches + self.positions(valid_hw, (h, w)).astype(patches.dtype)
        first = (self.class_embedding[...] + self.positional_embedding[0]).astype(patches.dtype)
        tokens = jnp.concatenate(
            [jnp.broadcast_to(first[None, None, :], (batch, 1, width)), patches.reshape(batch, h * w, width)], axis=1
        )
        inside = valid_mask(valid_hw, (h, w), self.stride).reshape(batch, 1, h * w)
        attended = jnp.concatenate([jnp.ones((batch, 1, 1), bool), inside], axis=2)
        tokens = self.resblocks(self.ln_pre(tokens), attended)
        return DenseFeatures(tokens[:, 1:].reshape(batch, h, w, width))

    def positions(self, valid_hw: Int[Array, "B 2"], shape: tuple[int, int]) -> Float[Array, "B h w C"]:
        """Resizes the table of positions to each image's own grid.

        The filter is bicubic and widens when it shrinks the table, as in OpenCLIP's resize_pos_embed.
        """
        table = self.positional_embedding[1:]
        table = table.astype(wide_dtype(table)).reshape(self.grid, self.grid, -1)

        def resized(hw: Int[Array, " 2"]) -> Float[Array, "h w C"]:
            scale = (hw // self.stride).astype(table.dtype) / self.grid
            return jax.image.scale_and_translate(
                table, (*shape, table.shape[-1]), (0, 1), scale, jnp.zeros_like(scale), "cubic", antialias=True
            )

        return jax.vmap(resized)(valid_hw)

    def embed_masks(
        self, clip_dense: Float[Array, "B h w C"], valid_hw: Int[Array, "B 2"], masks: Bool[Array, "B h w Q"]
    ) -> Float[Array, "B Q E"]:
        """Embeds each mask in CLIP's joint space, in at least float32: its mean token, through CLIP's own head."""
        inside = masks & valid_mask(valid_hw, masks.shape[1:3], self.stride)[..., None]
        x = self.ln_post(mask_pool(clip_dense, inside))
        projection = self.image_projection[...].astype(x.dtype)
        return jnp.matmul(x, projection, preferred_element_type=wide_dtype(x))
