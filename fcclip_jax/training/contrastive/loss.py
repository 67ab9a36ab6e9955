"""The contrastive loss: InfoNCE for batches in which several texts may be true of an image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def true_pairs(image_names: Int[Array, "B M"], text_names: Int[Array, "N M"]) -> Bool[Array, "B N"]:
    """Returns whether each text is true of each image: the image has everything that the text names.

    Names are hashes of at least 0; -1 fills the rows. A text without names is true of no image.
    """
    equal = image_names[:, None, :, None] == text_names[None, :, None, :]
    named = text_names >= 0
    found = jnp.any(equal, axis=2) | ~named[None, :, :]
    return jnp.all(found, axis=-1) & jnp.any(named, axis=-1)[None, :]


def equal_texts(text_names: Int[Array, "N M"]) -> Float[Array, " N"]:
    """Returns each text's weight: one over the number of texts in the batch that name the same things in the same order."""
    equal = jnp.all(text_names[:, None, :] == text_names[None, :, :], axis=-1)
    return 1 / jnp.sum(equal, axis=1).astype(jnp.float32)


def contrastive_loss(
    image_embeddings: Float[Array, "B E"],
    text_embeddings: Float[Array, "N E"],
    positives: Bool[Array, "B N"],
    shares: Float[Array, " N"],
    logit_scale: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the losses from images to texts and from texts to images.

    InfoNCE (Radford et al., 2021, figure 3), but each positive pair competes with the negatives alone: other positives are
    no mistakes. An image's loss is the mean over its positives, a text's too; images and texts without any are left out.
    Texts with the same names count as one: otherwise frequent words, which are learnt first, would outweigh all others.
    If each image has one text, and no two are the same, this is CLIP's loss.

    image_embeddings, text_embeddings: of unit length.
    shares: each text's weight, as `equal_texts` returns it.
    logit_scale: multiplies the cosine similarities.
    """
    logits = logit_scale * (image_embeddings @ text_embeddings.T)
    shares = shares.astype(logits.dtype)
    to_texts = _one_way(logits, positives, shares)
    to_images = _one_way(logits.T, positives.T, jnp.ones(logits.shape[0], logits.dtype))
    images = jnp.any(positives, axis=1).astype(logits.dtype)
    texts = jnp.any(positives, axis=0).astype(logits.dtype) * shares
    return _mean(to_texts, images), _mean(to_images, texts)


def _one_way(
    logits: Float[Array, "B N"], positives: Bool[Array, "B N"], weights: Float[Array, " N"]
) -> Float[Array, " B"]:
    """Returns each row's weighted mean over its positives of -log(exp(positive) / (exp(positive) + negatives)).

    In it, negatives is the weighted sum of exp(negative) over the row. A row without positives has 0.
    """
    # A row without negatives has the smallest finite sum instead of -inf, whose gradient would be NaN.
    smallest = jnp.asarray(jnp.finfo(logits.dtype).min / 2, logits.dtype)
    weighted = logits + jnp.log(weights)[None, :]
    negatives = jax.nn.logsumexp(jnp.where(positives, smallest, weighted), axis=1, keepdims=True)
    pairs = positives.astype(logits.dtype) * weights[None, :]
    return jnp.sum(jax.nn.softplus(negatives - logits) * pairs, axis=1) / jnp.maximum(jnp.sum(pairs, axis=1), 1e-6)


def _mean(values: Float[Array, " N"], weights: Float[Array, " N"]) -> Float[Array, ""]:
    """Returns the weighted mean, or 0 if all weights are 0."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-6)
