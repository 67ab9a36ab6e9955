"""The contrastive loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def true_pairs(image_names: Int[Array, "B M"], text_names: Int[Array, "N M"]) -> Bool[Array, "B N"]:
    """Returns whether each text is true of each image: the image has everything that the text names.

    Names are hashes; -1 fills the rows. No text without a name is true of an image.
    """
    equal = image_names[:, None, :, None] == text_names[None, :, None, :]
    named = text_names >= 0
    found = jnp.any(equal, axis=2) | ~named[None, :, :]
    return jnp.all(found, axis=-1) & jnp.any(named, axis=-1)[None, :]


def contrastive_loss(
    image_embeddings: Float[Array, "B E"],
    text_embeddings: Float[Array, "N E"],
    positives: Bool[Array, "B N"],
    logit_scale: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the losses from images to texts and from texts to images.

    InfoNCE (Radford et al., 2021, figure 3) for batches in which several texts may be true of an image: each positive pair
    competes with the negatives alone, as other positives are no mistakes. An image's loss is the mean over its positives,
    and images and texts without any do not count. If all images have one text, this is CLIP's loss.

    embeddings: of unit length. logit_scale: multiplies the cosine similarities.
    """
    logits = logit_scale * (image_embeddings @ text_embeddings.T)
    return _one_way(logits, positives), _one_way(logits.T, positives.T)


def _one_way(logits: Float[Array, "B N"], positives: Bool[Array, "B N"]) -> Float[Array, ""]:
    """Returns the mean of -log(exp(positive) / (exp(positive) + sum over negatives of exp(negative)))."""
    # A row without negatives has the smallest finite sum instead of -inf, whose gradient would be NaN.
    smallest = jnp.asarray(jnp.finfo(logits.dtype).min / 2, logits.dtype)
    negatives = jax.nn.logsumexp(jnp.where(positives, smallest, logits), axis=1, keepdims=True)
    of_pair = jax.nn.softplus(negatives - logits) * positives
    counts = jnp.sum(positives, axis=1)
    of_row = jnp.sum(of_pair, axis=1) / jnp.maximum(counts, 1).astype(logits.dtype)
    return jnp.sum(of_row) / jnp.maximum(jnp.sum(counts > 0), 1).astype(logits.dtype)
