"""The compiled programs of inference: from a batch of pixels to maps, on the device."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

from fcclip_jax.inference.postprocess import Postprocessed, postprocess, semantic_scores
from fcclip_jax.models.fcclip import normalize_images
from fcclip_jax.structs import TextClassifier

WHOLE, BY_IMAGE = PartitionSpec(), PartitionSpec("data")
"""Where arguments lie if several devices share a batch: on each of them, or each with its own images."""


class Inputs(NamedTuple):
    """A batch of photographs."""

    images: UInt8[Array, "B H W 3"]
    """At the size that the network reads, each at the top left of its bucket."""
    image_hw: Int[Array, "B 2"]
    """The images' own sizes in the bucket."""
    output_hw: Int[Array, "B 2"]
    """The sizes of the maps to make: the photographs' own."""


class Words(NamedTuple):
    """What the programs read of a vocabulary; K is the size of its bucket."""

    text: TextClassifier
    is_thing: Bool[Array, " K"]


def segment(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    inputs: Inputs,
    words: Words,
    overlap_threshold: Float[Array, ""],
    offered: Bool[Array, "B K"] | None,
    *,
    canvas: tuple[int, int],
    tasks: tuple[str, ...],
    before_resize: bool,
) -> Postprocessed:
    """The whole way of one batch, from pixels to maps: one program.

    offered: the classes that each image may have; None offers all.
    before_resize: as `postprocess`'s semantic_before_resize.
    """
    model = nnx.merge(graphdef, state)
    pixels, valid_hw = normalize_images(inputs.images, inputs.image_hw)
    prediction, features = model(pixels, valid_hw, words.text)
    return postprocess(
        prediction.mask_logits,
        model.classify(prediction, features.clip_dense, valid_hw, words.text, offered),
        words.is_thing,
        words.text.num_classes,
        inputs.image_hw,
        inputs.output_hw,
        canvas=canvas,
        tasks=tasks,
        overlap_threshold=overlap_threshold,
        semantic_before_resize=before_resize,
    )


SEGMENT_SPECS = (WHOLE, BY_IMAGE, WHOLE, WHOLE, BY_IMAGE)
"""Of `segment`'s arrays: state, inputs, words, overlap_threshold, offered."""


def score(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    inputs: Inputs,
    text: TextClassifier,
    *,
    canvas: tuple[int, int],
    classes: int,
    before_resize: bool,
) -> Float[Array, "B H_out W_out K"]:
    """Every class's score at every pixel, of the first `classes` classes."""
    model = nnx.merge(graphdef, state)
    pixels, valid_hw = normalize_images(inputs.images, inputs.image_hw)
    prediction, features = model(pixels, valid_hw, text)
    class_probs = model.classify(prediction, features.clip_dense, valid_hw, text)
    real = jnp.concatenate([class_probs[..., :classes], class_probs[..., -1:]], axis=-1)
    return semantic_scores(
        prediction.mask_logits, real, inputs.image_hw, inputs.output_hw, canvas=canvas, before_resize=before_resize
    )


def spread(program: Callable[..., Any], mesh: Mesh, specs: Sequence[PartitionSpec]) -> Callable[..., Any]:
    """Runs the same program on every device, each with its part of the batch: nothing passes between them.

    specs: a PartitionSpec for each of the program's arguments, all of whose arrays lie alike.
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
