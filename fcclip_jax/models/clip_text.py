"""CLIP's text tower."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fcclip_jax.models.descriptions import TextDescription
from fcclip_jax.models.layers import Attention, LayerNorm, Linear, Stack, gelu


class ResidualAttentionBlock(nnx.Module):
    """Pre-norm causal self-attention and feed-forward."""

    def __init__(self, description: TextDescription, *, rngs: nnx.Rngs):
        width = description.width
        self.ln_1 = LayerNorm(width, rngs=rngs)
        self.attn = Attention(width, description.heads, rngs=rngs)
        self.ln_2 = LayerNorm(width, rngs=rngs)
        self.c_fc = Linear(width, 4 * width, rngs=rngs)
        self.c_proj = Linear(4 * width, width, rngs=rngs)
        self.quick_gelu = description.quick_gelu

    def __call__(self, x: Float[Array, "N L C"]) -> Float[Array, "N L C"]:
        length = x.shape[1]
        causal = jnp.tril(jnp.ones((1, length, length), bool))
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, causal)
        y = self.c_fc(self.ln_2(x))
        y = y * jax.nn.sigmoid(1.702 * y) if self.quick_gelu else gelu(y)
        return x + self.c_proj(y)


class TextTower(nnx.Module):
    """Maps tokens to features in CLIP's joint space, not normalised.

    Tokens are rows of the embedding table: CLIP's ids, or `text.tokenizer.table_rows` of them if the tower has `token_ids`.
    """

    def __init__(self, description: TextDescription, *, rngs: nnx.Rngs):
        width = description.width
        self.token_ids = description.token_ids
        normal = nnx.initializers.normal(0.02)
        self.token_embedding = nnx.Param(normal(rngs.params(), (description.vocab_size, width)))
        self.positional_embedding = nnx.Param(normal(rngs.params(), (description.context_length, width)))
        self.resblocks = Stack(
            lambda rngs: ResidualAttentionBlock(description, rngs=rngs), description.layers, rngs=rngs
        )
        self.ln_final = LayerNorm(width, rngs=rngs)
        self.text_projection = nnx.Param(normal(rngs.params(), (width, description.embed_dim)))

    def __call__(self, tokens: Int[Array, "N L"]) -> Float[Array, "N E"]:
        """Returns the features at each text's end token, which has the largest row.

        Attention is causal, so cutting the rows after the longest text's end token changes nothing.
        """
        x = self.token_embedding[...][tokens] + self.positional_embedding[: tokens.shape[1]][None, :, :]
        x = self.ln_final(self.resblocks(x))
        ends = jnp.argmax(tokens, axis=-1)
        return jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0] @ self.text_projection[...]
