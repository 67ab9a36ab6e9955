"""The whole model."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from fcclip_jax.conventions import MASK_STRIDE, STRIDE, round_up
from fcclip_jax.models.classifiers import ensemble, shrink, text_logits
from fcclip_jax.models.clip_text import TextTower
from fcclip_jax.models.convnext import ConvNeXt
from fcclip_jax.models.descriptions import ClipDescription, ModelDescription, ViTDescription
from fcclip_jax.models.features import Features
from fcclip_jax.models.layers import unit_normal
from fcclip_jax.models.mask_decoder import MaskDecoder
from fcclip_jax.models.padding import valid_mask
from fcclip_jax.models.pixel_decoder import PixelDecoder
from fcclip_jax.models.resnet import ResNet
from fcclip_jax.models.vit import VisionTransformer
from fcclip_jax.structs import Prediction, TextClassifier, checked

PIXEL_MEAN = (122.7709383, 116.7460125, 104.09373615)
PIXEL_STD = (68.5005327, 66.6321579, 70.32316305)


class CLIP(nnx.Module):
    """CLIP's two frozen towers."""

    def __init__(self, description: ClipDescription, *, rngs: nnx.Rngs):
        trunk = {"convnext": ConvNeXt, "resnet": ResNet, "vit": VisionTransformer}[description.image.family]
        self.image = trunk(description.image, rngs=rngs)
        self.text = TextTower(description.text, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.asarray(1 / 0.07)))


class FCCLIP(nnx.Module):
    """Yu et al., NeurIPS 2023, figure 3: one frozen convolutional CLIP under two light trainable modules."""

    def __init__(self, description: ModelDescription, *, rngs: nnx.Rngs):
        image, head = description.clip.image, description.head
        if isinstance(image, ViTDescription):
            raise ValueError("a vision transformer has features at one stride, but the mask decoder needs four")
        self.clip = CLIP(description.clip, rngs=rngs)
        self.pixel_decoder = PixelDecoder(image.feature_dims, head, rngs=rngs)
        self.mask_decoder = MaskDecoder(head, image.embed_dim, rngs=rngs)
        self.void_embedding = nnx.Param(unit_normal(rngs.params(), (image.embed_dim,)))
        self.ensemble = description.ensemble

    def __call__(
        self, images: Float[Array, "B H W 3"], valid_hw: Int[Array, "B 2"], text: TextClassifier
    ) -> tuple[Prediction, Features]:
        """Returns the last layer's masks with their in-vocabulary scores, and the trunk's features, for `classify`."""
        features = checked(jax.lax.stop_gradient(self.clip.image(images, valid_hw)))
        pixels = checked(self.pixel_decoder(features, valid_hw))
        queries = self.mask_decoder(pixels, valid_hw)[-1]
        void = self.void_embedding[...]
        prediction = self.mask_decoder.predict(queries, pixels.mask_features, valid_hw, text, void)
        return checked(prediction), features

    def classify(
        self,
        prediction: Prediction,
        clip_dense: Float[Array, "B h w C"],
        valid_hw: Int[Array, "B 2"],
        text: TextClassifier,
        offered: Bool[Array, "B K"] | None = None,
        void_trust: float | Float[Array, ""] = 0.0,
        alpha_beta: Float[Array, "2"] | None = None,
    ) -> Float[Array, "B Q K1"]:
        """Computes class probabilities, void last: seen classes lean on the trained classifier, unseen ones on CLIP.

        offered: the classes that each image may have, as if its vocabulary had no others; by default all.
        void_trust, alpha_beta: see `ensemble`.
        """
        out_vocab, valid_masks = self.out_vocab_logits(prediction, clip_dense, valid_hw, text)
        in_vocab = prediction.class_logits
        if offered is not None:
            out_vocab = jnp.where(offered[:, None, :], out_vocab, -jnp.inf)
            in_vocab = in_vocab.at[..., :-1].set(jnp.where(offered[:, None, :], in_vocab[..., :-1], -jnp.inf))
        return ensemble(in_vocab, out_vocab, text.seen, valid_masks, self.ensemble, void_trust, alpha_beta)

    def out_vocab_logits(
        self,
        prediction: Prediction,
        clip_dense: Float[Array, "B h w C"],
        valid_hw: Int[Array, "B 2"],
        text: TextClassifier,
    ) -> tuple[Float[Array, "B Q K"], Bool[Array, "B Q"]]:
        """Returns CLIP's own score of each class for each mask, and whether the mask has any cell of its features."""
        masks = dense_masks(shrink(prediction.mask_logits, STRIDE // MASK_STRIDE), valid_hw)
        embeddings = self.clip.image.embed_masks(clip_dense, valid_hw, masks)
        return text_logits(embeddings, text, self.clip.logit_scale[...]), jnp.any(masks, axis=(1, 2))


def dense_masks(
    logits: Float[Array, "B h w Q"], valid_hw: Int[Array, "B 2"], stride: int = STRIDE
) -> Bool[Array, "B h w Q"]:
    """Binarises mask logits at the stride of CLIP's dense features, which are pooled under them."""
    return (logits > 0) & valid_mask(valid_hw, logits.shape[1:3], stride)[..., None]


def normalize_images(
    images: UInt8[Array, "B H W 3"], image_hw: Int[Array, "B 2"], dtype: DTypeLike = jnp.float32
) -> tuple[Float[Array, "B H W 3"], Int[Array, "B 2"]]:
    """Normalises images, with zeros outside `image_hw`.

    Returns:
        The images, and `valid_hw`: each image's size rounded up to a multiple of 32.
    """
    wide = np.promote_types(dtype, jnp.float32)
    mean, std = (jnp.asarray(values, wide)[None, None, None, :] for values in (PIXEL_MEAN, PIXEL_STD))
    rows = jnp.arange(images.shape[1], dtype=image_hw.dtype)[None, :, None, None] < image_hw[:, 0][:, None, None, None]
    columns = (
        jnp.arange(images.shape[2], dtype=image_hw.dtype)[None, None, :, None] < image_hw[:, 1][:, None, None, None]
    )
    normal = jnp.where(rows & columns, (images.astype(wide) - mean) / std, jnp.zeros((), wide))
    return normal.astype(dtype), round_up(image_hw, STRIDE)
