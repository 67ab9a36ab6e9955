"""The programs of inference that are compiled: from a batch of pixels to maps, on the device."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

from fcclip_jax.inference.postprocess import InstanceScores, Postprocessed, postprocess, semantic_scores
from fcclip_jax.models.fcclip import normalize_images
from fcclip_jax.models.precision import Precision
from fcclip_jax.structs import AnyArray, TextClassifier, checked

WHOLE, BY_IMAGE = PartitionSpec(), PartitionSpec("data")
"""Placement of arguments if several devices share a batch: all of them on each device, or its own images on each."""


class Inputs(NamedTuple):
    """A batch of images."""

    images: UInt8[AnyArray, "B H W 3"]
    """At the size that the network reads, each at the top left of its bucket."""
    image_hw: Int[AnyArray, "B 2"]
    """The images' own sizes in the bucket."""
    output_hw: Int[AnyArray, "B 2"]
    """The sizes of the maps to make: those of the images before they were resized."""


class View(NamedTuple):
    """The images of a batch at another size."""

    images: UInt8[AnyArray, "B H W 3"]
    image_hw: Int[AnyArray, "B 2"]


class Words(NamedTuple):
    """A vocabulary as the programs read it; K is the size of its bucket."""

    text: TextClassifier
    is_thing: Bool[AnyArray, " K"]


def segment(
    graphdef: nnx.GraphDef,
    precision: Precision,
    state: nnx.State,
    inputs: Inputs,
    words: Words,
    overlap_threshold: Float[Array, ""],
    void_trust: Float[Array, " T"],
    alpha_beta: Float[Array, "2"],
    offered: Bool[Array, "B K"] | None,
    *,
    canvas: tuple[int, int],
    tasks: tuple[str, ...],
    before_resize: bool,
    instance_scores: InstanceScores,
) -> Postprocessed:
    """Segments one batch, from pixels to maps.

    void_trust: each task's, see `models.classifiers.ensemble`.
    alpha_beta: the ensemble's, as arguments, so that other values do not recompile.
    offered: the classes that each image may have; None offers all.
    before_resize: `postprocess`'s semantic_before_resize.
    """
    checked(inputs)
    checked(words)
    model = nnx.merge(graphdef, state)
    with jax.default_matmul_precision(precision.products):
        pixels, valid_hw = normalize_images(inputs.images, inputs.image_hw, precision.dtype)
        prediction, features = model(pixels, valid_hw, words.text)

        def classify(void_trust: Float[Array, ""]) -> Float[Array, "B Q K1"]:
            return model.classify(
                prediction, features.clip_dense, valid_hw, words.text, offered, void_trust, alpha_beta
            )

        class_probs = jax.vmap(classify)(void_trust)
    return postprocess(
        prediction.mask_logits,
        dict(zip(tasks, class_probs, strict=True)),
        words.is_thing,
        words.text.num_classes,
        inputs.image_hw,
        inputs.output_hw,
        canvas=canvas,
        overlap_threshold=overlap_threshold,
        semantic_before_resize=before_resize,
        instance_scores=instance_scores,
    )


SEGMENT_SPECS = (WHOLE, BY_IMAGE, WHOLE, WHOLE, WHOLE, WHOLE, BY_IMAGE)
"""Placement of `segment`'s arrays: state, inputs, words, overlap_threshold, void_trust, alpha_beta, offered."""


def score(
    graphdef: nnx.GraphDef,
    precision: Precision,
    state: nnx.State,
    inputs: Inputs,
    text: TextClassifier,
    void_trust: Float[Array, ""],
    *,
    canvas: tuple[int, int],
    classes: int,
    before_resize: bool,
) -> Float[Array, "B H_out W_out K"]:
    """Returns the score of each of the first `classes` classes at every pixel."""
    checked(inputs)
    checked(text)
    model = nnx.merge(graphdef, state)
    with jax.default_matmul_precision(precision.products):
        pixels, valid_hw = normalize_images(inputs.images, inputs.image_hw, precision.dtype)
        prediction, features = model(pixels, valid_hw, text)
        class_probs = model.classify(prediction, features.clip_dense, valid_hw, text, void_trust=void_trust)
    real = jnp.concatenate([class_probs[..., :classes], class_probs[..., -1:]], axis=-1)
    return semantic_scores(
        prediction.mask_logits, real, inputs.image_hw, inputs.output_hw, canvas=canvas, before_resize=before_resize
    )


def spread(program: Callable[..., Any], mesh: Mesh, specs: Sequence[PartitionSpec]) -> Callable[..., Any]:
    """Returns the program for several devices, each with its part of the batch. Devices exchange no data.

    specs: one for each of the program's arguments; it holds for all of the argument's arrays.
    """

    def spread_program(*arguments: Any, **options: Any) -> Any:
        return jax.shard_map(
            functools.partial(program, **options),
            mesh=mesh,
            in_specs=tuple(specs),
            out_specs=BY_IMAGE,
            check_vma=False,
        )(*arguments)

    return spread_program
