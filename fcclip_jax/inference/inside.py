"""What a model computes on the way to a result: the trunk's features, each query's mask, and what both classifiers say of it."""

import functools
import sys
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from fcclip_jax.conventions import MASK_STRIDE, STRIDE, ceil_div, round_up
from fcclip_jax.data.images import ImageLike, load_image, pad, resize, resized_shape
from fcclip_jax.inference.programs import Inputs
from fcclip_jax.models.convnext import ConvNeXt
from fcclip_jax.models.fcclip import normalize_images
from fcclip_jax.models.precision import FLOAT32, Precision
from fcclip_jax.models.resnet import ResNet
from fcclip_jax.models.vit import VisionTransformer
from fcclip_jax.structs import TextClassifier, checked

Trunk = ConvNeXt | ResNet | VisionTransformer


class Explanation(NamedTuple):
    """The queries of one image, before any of them becomes a segment.

    `in_vocab` and `mixed` sum to 1 over the classes and void, `out_vocab` over the classes: CLIP knows no void.
    """

    mask_logits: Float[np.ndarray, "h w Q"]
    """At stride 4 of the image at the network's size, whose upper left corner is the image's; above 0 is inside."""
    in_vocab: Float[np.ndarray, "Q K1"]
    """The trained classifier's probabilities, void last."""
    out_vocab: Float[np.ndarray, "Q K"]
    """CLIP's, from its features under each mask."""
    mixed: Float[np.ndarray, "Q K1"]
    """The ensemble's, void last: with these the result is made."""


def dense_features(
    trunk: Trunk, image: ImageLike, short_side: int, precision: Precision = FLOAT32
) -> Float[np.ndarray, "h w C"]:
    """Returns the features of an image trunk, at its own stride: see `Segmenter.features`.

    Compiles a program for each size that the image has after padding to a multiple of 32.
    """
    if short_side < STRIDE:
        raise ValueError(f"short_side is {short_side}; give at least {STRIDE} pixels")
    pixels = load_image(image)
    height, width = pixels.shape[:2]
    shape = resized_shape(height, width, short_side, sys.maxsize)
    padded = pad(resize(pixels, shape), (round_up(shape[0], STRIDE), round_up(shape[1], STRIDE)))
    graphdef, state = nnx.split(trunk)
    dense = _trunk_features(graphdef, precision, state, padded[None], np.asarray([shape], np.int32))
    rows, columns = (ceil_div(side, trunk.stride) for side in shape)
    return np.asarray(dense)[0, :rows, :columns].astype(np.float32)


def explain(
    graphdef: nnx.GraphDef,
    precision: Precision,
    state: nnx.State,
    inputs: Inputs,
    text: TextClassifier,
    void_trust: float,
) -> Explanation:
    """Returns the explanation of a batch of one image: see `Segmenter.explain`.

    graphdef, state: the model's, without its text tower.
    """
    found = jax.device_get(_explain(graphdef, precision, state, inputs, text, np.float32(void_trust)))
    height, width = (ceil_div(int(side), MASK_STRIDE) for side in inputs.image_hw[0])
    classes = int(text.num_classes)
    mask_logits, in_vocab, out_vocab, mixed = (np.asarray(part[0], np.float32) for part in found)

    def real(probs: np.ndarray) -> np.ndarray:
        return np.concatenate([probs[:, :classes], probs[:, -1:]], axis=1)

    return checked(Explanation(mask_logits[:height, :width], real(in_vocab), out_vocab[:, :classes], real(mixed)))


@functools.partial(jax.jit, static_argnames=("graphdef", "precision"))
def _trunk_features(
    graphdef: nnx.GraphDef,
    precision: Precision,
    state: nnx.State,
    images: UInt8[Array, "B H W 3"],
    image_hw: Int[Array, "B 2"],
) -> Float[Array, "B h w C"]:
    with jax.default_matmul_precision(precision.products):
        return nnx.merge(graphdef, state)(*normalize_images(images, image_hw, precision.dtype)).clip_dense


@functools.partial(jax.jit, static_argnames=("graphdef", "precision"))
def _explain(
    graphdef: nnx.GraphDef,
    precision: Precision,
    state: nnx.State,
    inputs: Inputs,
    text: TextClassifier,
    void_trust: Float[Array, ""],
) -> tuple[Float[Array, "B h w Q"], Float[Array, "B Q K1"], Float[Array, "B Q K"], Float[Array, "B Q K1"]]:
    checked(inputs)
    checked(text)
    model = nnx.merge(graphdef, state)
    with jax.default_matmul_precision(precision.products):
        pixels, valid_hw = normalize_images(inputs.images, inputs.image_hw, precision.dtype)
        prediction, features = model(pixels, valid_hw, text)
        out_vocab, _ = model.out_vocab_logits(prediction, features.clip_dense, valid_hw, text)
        mixed = model.classify(prediction, features.clip_dense, valid_hw, text, void_trust=void_trust)
    return (
        prediction.mask_logits,
        jax.nn.softmax(prediction.class_logits, axis=-1),
        jax.nn.softmax(out_vocab, axis=-1),
        mixed,
    )
