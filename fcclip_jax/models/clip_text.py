"""CLIP's text tower."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fcclip_jax.models.descriptions import TextDescription
from fcclip_jax.models.layers import LayerNorm, Stack
from fcclip_jax.models.transformer import ResidualAttentionBlock


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
            lambda rngs: ResidualAttentionBlock(width, description.heads, quick_gelu=description.quick_gelu, rngs=rngs),
            description.layers,
            rngs=rngs,
        )
        self.ln_final = LayerNorm(width, rngs=rngs)
        self.text_projection = nnx.Param(normal(rngs.params(), (width, description.embed_dim)))

    def __call__(self, tokens: Int[Array, "N L"]) -> Float[Array, "N E"]:
        """Returns the features at each text's end token, which has the largest row.

        Attention is causal, so cutting the rows after the longest text's end token changes nothing.
        """
        x = self.token_embedding[...][tokens] + self.positional_embedding[: tokens.shape[1]][None, :, :]
        causal = jnp.tril(jnp.ones((1, x.shape[1], x.shape[1]), bool))
        x = self.ln_final(self.resblocks(x, causal))
        ends = jnp.argmax(tokens, axis=-1)
        return jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0] @ self.text_projection[...]
