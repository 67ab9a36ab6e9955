"""The mask decoder: each query becomes one mask (fcclip_transformer_decoder.py, after Mask2Former)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.conventions import MASK_STRIDE
from fcclip_jax.models.classifiers import mask_pool, shrink, text_logits, void_logits
from fcclip_jax.models.descriptions import HeadDescription
from fcclip_jax.models.features import PixelFeatures
from fcclip_jax.models.layers import (
    MLP,
    Attention,
    LayerNorm,
    Linear,
    sine_positions,
    unit_normal,
    wide_dtype,
    xavier_uniform,
)
from fcclip_jax.models.padding import valid_mask
from fcclip_jax.models.pixel_decoder import LEVEL_STRIDES
from fcclip_jax.structs import Prediction, TextClassifier


class DecoderLayer(nnx.Module):
    """Masked cross-attention, self-attention and feed-forward, each post-norm."""

    def __init__(self, description: HeadDescription, *, rngs: nnx.Rngs):
        dim, ffn_dim = description.hidden_dim, description.decoder_ffn_dim
        self.cross_attn = Attention(dim, description.heads, rngs=rngs)
        self.cross_norm = LayerNorm(dim, rngs=rngs)
        self.self_attn = Attention(dim, description.heads, rngs=rngs)
        self.self_norm = LayerNorm(dim, rngs=rngs)
        self.linear1 = Linear(dim, ffn_dim, init=xavier_uniform, rngs=rngs)
        self.linear2 = Linear(ffn_dim, dim, init=xavier_uniform, rngs=rngs)
        self.ffn_norm = LayerNorm(dim, rngs=rngs)

    def cross_attend(
        self,
        queries: Float[Array, "B Q C"],
        query_positions: Float[Array, "1 Q C"],
        tokens: Float[Array, "B N C"],
        positions: Float[Array, "B N C"],
        attend: Bool[Array, "B Q N"],
    ) -> Float[Array, "B Q C"]:
        """Attends to the tokens that `attend` allows."""
        found = self.cross_attn(queries + query_positions, tokens + positions, tokens, attend)
        return self.cross_norm(queries + found)

    def self_attend(
        self, queries: Float[Array, "B Q C"], query_positions: Float[Array, "1 Q C"]
    ) -> Float[Array, "B Q C"]:
        """Attends among the queries."""
        keys = queries + query_positions
        return self.self_norm(queries + self.self_attn(keys, keys, queries))

    def feed_forward(self, queries: Float[Array, "B Q C"]) -> Float[Array, "B Q C"]:
        """Applies the feed-forward network to each query."""
        return self.ffn_norm(queries + self.linear2(jax.nn.relu(self.linear1(queries))))


class MaskDecoder(nnx.Module):
    """Turns learned queries into masks and class embeddings."""

    def __init__(self, description: HeadDescription, embed_dim: int, *, rngs: nnx.Rngs):
        dim, count = description.hidden_dim, description.num_queries
        self.query_feat = nnx.Param(unit_normal(rngs.params(), (count, dim)))
        self.query_embed = nnx.Param(unit_normal(rngs.params(), (count, dim)))
        self.level_embed = nnx.Param(unit_normal(rngs.params(), (len(LEVEL_STRIDES), dim)))
        self.layers = nnx.List([DecoderLayer(description, rngs=rngs) for _ in range(description.decoder_layers)])
        self.decoder_norm = LayerNorm(dim, rngs=rngs)
        self.mask_embed = MLP(dim, dim, description.mask_dim, 3, rngs=rngs)
        self.pool_norm = LayerNorm(description.mask_dim, rngs=rngs)
        self.pool_proj = Linear(description.mask_dim, dim, rngs=rngs)
        self.class_embed = MLP(dim, dim, embed_dim, 3, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.asarray(1 / 0.07)))
        self.remat = False
        """True recomputes the values inside a round over the levels in training instead of keeping them."""
        self.unrolled = False
        """True repeats the code of a round instead of stacking all layers' weights in every run, to slice them again."""

    def __call__(self, pixels: PixelFeatures, valid_hw: Int[Array, "B 2"]) -> list[Float[Array, "B Q C"]]:
        """Returns the normalised queries before the first layer and after each, all valid inputs of `predict`."""
        tokens, positions, masks, small_features = self.inputs(pixels, valid_hw)
        queries = self.learned_queries(tokens[0])
        query_positions = self.query_embed[...].astype(queries.dtype)[None]

        def visit_levels(queries, layers):
            outputs = []
            for level, layer in enumerate(layers):
                attend = self.attention_mask(self.decoder_norm(queries), small_features[level], masks[level])
                queries = layer.cross_attend(queries, query_positions, tokens[level], positions[level], attend)
                queries = layer.feed_forward(layer.self_attend(queries, query_positions))
                outputs.append(queries)
            return queries, outputs

        outputs, layers = [queries], self.layers
        rounds = len(layers) // len(tokens)
        if rounds and not self.unrolled:
            # Each round over the levels is the same code, compiled once.
            graphdefs, states = zip(*map(nnx.split, self.layers[: rounds * len(tokens)]), strict=True)
            starts = [states[i : i + len(tokens)] for i in range(0, len(states), len(tokens))]
            stacked = jax.tree.map(lambda *values: jnp.stack(values), *starts)

            def visit_round(queries, states):
                return visit_levels(
                    queries, [nnx.merge(*layer) for layer in zip(graphdefs[: len(tokens)], states, strict=True)]
                )

            visit = jax.checkpoint(visit_round) if self.remat else visit_round
            queries, of_rounds = jax.lax.scan(visit, queries, stacked)
            outputs += [of_level[i] for i in range(rounds) for of_level in of_rounds]
            layers = self.layers[rounds * len(tokens) :]
        for start in range(0, len(layers), len(tokens)):
            queries, of_levels = visit_levels(queries, layers[start : start + len(tokens)])
            outputs += of_levels
        return [self.decoder_norm(queries) for queries in outputs]

    def learned_queries(self, tokens: Float[Array, "B N C"]) -> Float[Array, "B Q C"]:
        """Returns the initial queries, the same for each image, in the tokens' dtype."""
        queries = self.query_feat[...].astype(tokens.dtype)
        return jnp.broadcast_to(queries[None], (tokens.shape[0], *queries.shape))

    def inputs(self, pixels: PixelFeatures, valid_hw: Int[Array, "B 2"]):
        """Returns, by level, tokens with level embedding, positions, valid masks, and mask_features at its stride.

        Resizing is linear, so the official attention mask, which resizes mask_embed . mask_features, is mask_embed .
        (resized mask_features): one small product a layer instead of a full-resolution one.
        """
        tokens, positions, masks, small_features = [], [], [], []
        for i, (level, stride) in enumerate(zip(pixels.levels, LEVEL_STRIDES, strict=True)):
            batch, h, w, dim = level.shape
            embed = self.level_embed[i].astype(level.dtype)[None, None]
            tokens.append(level.reshape(batch, h * w, dim) + embed)
            position = sine_positions(valid_hw, (h, w), stride, dim, level.dtype)
            positions.append(position.reshape(batch, h * w, dim))
            masks.append(valid_mask(valid_hw, (h, w), stride).reshape(batch, 1, h * w))
            small = shrink(pixels.mask_features, stride // MASK_STRIDE)
            small_features.append(small.reshape(batch, h * w, -1))
        return tokens, positions, masks, small_features

    def attention_mask(
        self, queries: Float[Array, "B Q C"], features: Float[Array, "B N D"], valid: Bool[Array, "B 1 N"]
    ) -> Bool[Array, "B Q N"]:
        """Returns the cells that each query attends to: those inside its current mask, or all if that is empty."""
        inside = (jnp.einsum("bqc,bnc->bqn", self.mask_embed(queries), features) >= 0) & valid
        return jnp.where(jnp.any(inside, axis=-1, keepdims=True), inside, valid)

    def predict(
        self,
        queries: Float[Array, "B Q C"],
        mask_features: Float[Array, "B h w D"],
        valid_hw: Int[Array, "B 2"],
        text: TextClassifier,
        void: Float[Array, " E"],
    ) -> Prediction:
        """Returns masks and their in-vocabulary class logits, both in at least float32.

        Unlike the paper's figure, the query itself is added to its pooled features
        (fcclip_transformer_decoder.py:482-490).
        """
        mask_logits = jnp.einsum(
            "bhwc,bqc->bhwq", mask_features, self.mask_embed(queries), preferred_element_type=wide_dtype(queries)
        )
        embeddings = self.class_embeddings(queries, mask_logits, mask_features, valid_hw)
        scale = self.logit_scale[...]
        classes = text_logits(embeddings, text, scale), void_logits(embeddings, void, scale)
        return Prediction(mask_logits, jnp.concatenate(classes, axis=-1))

    def class_embeddings(
        self,
        queries: Float[Array, "B Q C"],
        mask_logits: Float[Array, "B h w Q"],
        mask_features: Float[Array, "B h w D"],
        valid_hw: Int[Array, "B 2"],
    ) -> Float[Array, "B Q E"]:
        """Embeds each query, and the features under its mask, in CLIP's joint space, in at least float32."""
        inside = (mask_logits > 0) & valid_mask(valid_hw, mask_logits.shape[1:3], MASK_STRIDE)[..., None]
        pooled = self.pool_proj(self.pool_norm(mask_pool(mask_features, inside)))
        return self.class_embed(pooled + queries, wide=True)
