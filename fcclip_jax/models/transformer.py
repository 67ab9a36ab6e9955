"""The block of CLIP's transformers, of text and of images."""

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from fcclip_jax.models.layers import Attention, LayerNorm, Linear, gelu


class ResidualAttentionBlock(nnx.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int, heads: int, *, quick_gelu: bool = False, rngs: nnx.Rngs):
        self.ln_1 = LayerNorm(width, rngs=rngs)
        self.attn = Attention(width, heads, rngs=rngs)
        self.ln_2 = LayerNorm(width, rngs=rngs)
        self.c_fc = Linear(width, 4 * width, rngs=rngs)
        self.c_proj = Linear(4 * width, width, rngs=rngs)
        self.quick_gelu = quick_gelu

    def __call__(self, x: Float[Array, "N L C"], mask: Bool[Array, "#N #L L"]) -> Float[Array, "N L C"]:
        """Applies the block. Each token attends to those where its row of `mask` is True."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, mask)
        y = self.c_fc(self.ln_2(x))
        y = y * jax.nn.sigmoid(1.702 * y) if self.quick_gelu else gelu(y)
        return x + self.c_proj(y)
