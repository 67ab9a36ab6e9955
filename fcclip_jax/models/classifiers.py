"""Class scores from masks and embeddings: mask pooling, text logits, and the ensemble of the two classifiers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fcclip_jax.models.descriptions import EnsembleDescription
from fcclip_jax.models.layers import wide_dtype
from fcclip_jax.structs import TextClassifier


def mask_pool(features: Float[Array, "B h w C"], masks: Bool[Array, "B h w Q"]) -> Float[Array, "B Q C"]:
    """Averages the features inside each mask.

    An empty mask pools to zeros. Masks are binary, so no gradient reaches them.
    """
    wide = wide_dtype(features)
    area = jnp.sum(masks, axis=(1, 2), dtype=wide)[..., None]
    sums = jnp.einsum("bhwq,bhwc->bqc", masks.astype(features.dtype), features, preferred_element_type=wide)
    return (sums / (area + 1e-8)).astype(features.dtype)


def shrink(x: Float[Array, "B H W C"], factor: int) -> Float[Array, "B h w C"]:
    """Downsamples bilinearly by an even factor (align_corners=False, no anti-aliasing): means of the middle 4 cells."""
    first = factor // 2 - 1
    top, bottom = (x[:, row::factor].astype(wide_dtype(x)) for row in (first, first + 1))
    rows = top + bottom
    return (0.25 * (rows[:, :, first::factor] + rows[:, :, first + 1 :: factor])).astype(x.dtype)


def normalize(x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
    """Divides x by its L2 norm over the last axis."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def text_logits(
    embeddings: Float[Array, "B Q C"], text: TextClassifier, logit_scale: Float[Array, ""]
) -> Float[Array, "B Q K"]:
    """Computes the scaled cosine similarity with each class: the largest over its synonyms. Padded classes get -inf.

    logit_scale: the logarithm of the scale, which is at most 100.
    """
    scale = jnp.minimum(jnp.exp(logit_scale), 100.0).astype(embeddings.dtype)
    rows = jnp.einsum("bqc,tc->tbq", scale * normalize(embeddings), text.embeddings.astype(embeddings.dtype))
    classes = jax.ops.segment_max(rows, text.groups, num_segments=text.seen.shape[0], indices_are_sorted=True)
    return jnp.moveaxis(classes, 0, -1)


def void_logits(
    embeddings: Float[Array, "B Q C"], void: Float[Array, " C"], logit_scale: Float[Array, ""]
) -> Float[Array, "B Q 1"]:
    """Computes the same similarity with the learned void embedding."""
    scale = jnp.minimum(jnp.exp(logit_scale), 100.0).astype(embeddings.dtype)
    return jnp.einsum("bqc,c->bq", scale * normalize(embeddings), normalize(void.astype(embeddings.dtype)))[..., None]


def ensemble(
    in_vocab_logits: Float[Array, "B Q K1"],
    out_vocab_logits: Float[Array, "B Q K"],
    seen: Bool[Array, " K"],
    valid_masks: Bool[Array, "B Q"],
    description: EnsembleDescription,
    void_trust: float | Float[Array, ""] = 0.0,
    alpha_beta: Float[Array, "2"] | None = None,
) -> Float[Array, "B Q K1"]:
    """Mixes both classifiers into probabilities, void last (paper, equation 7; fcclip.py).

    The exponent (for the arithmetic ensemble, the weight) of the out-of-vocabulary probability is alpha for seen
    classes and beta for the others. The mixture is normalised over the classes, then scaled so that void keeps the
    probability that the in-vocabulary classifier gives it. It is computed in log space: the official product of
    probabilities can underflow to NaN.

    The official code passes log(p + 1e-8) to a last softmax, so a probability here is (p + 1e-8) over their sum.

    void_trust: OVRCOAT's w (ovrcoat.py), from 0 to 1. Void keeps the share 1 - w m of its probability, where m is the largest
        out-of-vocabulary probability of the query: CLIP may know what is void to the trained classifier. 0 is FC-CLIP.
    alpha_beta: replaces alpha and beta of the description.
    """
    real = jnp.isfinite(out_vocab_logits)
    log_in = jnp.where(real, jax.nn.log_softmax(in_vocab_logits[..., :-1], axis=-1), 0.0)
    log_out = jnp.where(real, jax.nn.log_softmax(out_vocab_logits, axis=-1), 0.0)
    alpha, beta = (description.alpha, description.beta) if alpha_beta is None else alpha_beta
    weight = jnp.where(seen, alpha, beta).astype(log_in.dtype)[None, None, :]
    if description.valid_masks_only:
        weight = weight * valid_masks[..., None].astype(weight.dtype)
    if description.mode == "geometric":
        mixed = (1 - weight) * log_in + weight * log_out
    else:
        mixed = jnp.log((1 - weight) * jnp.exp(log_in) + weight * jnp.exp(log_out))
    shares = jax.nn.softmax(in_vocab_logits, axis=-1)
    void = shares[..., -1:]
    surest = jnp.exp(jnp.max(jnp.where(real, log_out, -jnp.inf), axis=-1, keepdims=True))
    moved = jnp.asarray(void_trust, void.dtype) * surest * void  # from void to the classes
    # The sum equals 1 - void, but keeps the digits that the difference loses where void is close to 1.
    not_void = jnp.sum(shares[..., :-1], -1, keepdims=True) + moved
    classes = jax.nn.softmax(jnp.where(real, mixed, -jnp.inf), axis=-1) * not_void
    probs = jnp.concatenate([jnp.where(real, classes + 1e-8, 0.0), void - moved + 1e-8], axis=-1)
    return probs / jnp.sum(probs, axis=-1, keepdims=True)
