"""Masks and class scores of the queries → panoptic, semantic and instance results, on the device.

The official code works on the whole stack of masks [Q, H, W] at the image's size. Here the output is visited tile by
tile, and no array of that size exists. Shapes are static, but the loops run over the tiles and classes that the image and
the vocabulary really have: one compiled program serves every output size up to the canvas and every vocabulary up to its
bucket, at a cost that follows the real sizes.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from fcclip_jax.conventions import OVERLAP_THRESHOLD, check_tasks
from fcclip_jax.inference.postprocess.folds import Fold, fold_tiles
from fcclip_jax.inference.postprocess.instances import (
    MAX_INSTANCES,
    Instances,
    InstanceScores,
    instance_fold,
    unpack_mask,
)
from fcclip_jax.inference.postprocess.panoptic import Segments, panoptic_fold, panoptic_sweep
from fcclip_jax.inference.postprocess.semantic import semantic_fold, semantic_scores
from fcclip_jax.inference.resampling import working_dtype
from fcclip_jax.structs import AnyArray, checked

__all__ = [
    "MAX_INSTANCES",
    "InstanceScores",
    "Instances",
    "Postprocessed",
    "Segments",
    "panoptic_sweep",
    "postprocess",
    "semantic_scores",
    "unpack_mask",
]


class Postprocessed(NamedTuple):
    """Maps hold each image in [:height, :width] of its `output_hw`; fields of tasks that were not requested are None."""

    panoptic: Int[AnyArray, "*B H W"] | None
    """Segment ids; 0 is void."""
    segments: Segments | None
    semantic: Int[AnyArray, "*B H W"] | None
    """Class ids."""
    instances: Instances | None
    mask_bits: UInt8[AnyArray, "*B N W2 H8"] | None
    """Masks for `unpack_mask`, in the rows of `Instances.mask_rows`: column by column, 8 rows to a byte, the first in the lowest bit."""


def postprocess(
    mask_logits: Float[Array, "B h w Q"],
    class_probs: Mapping[str, Float[Array, "B Q K1"]],
    is_thing: Bool[Array, " K"],
    num_classes: Int[Array, ""],
    image_hw: Int[Array, "B 2"],
    output_hw: Int[Array, "B 2"],
    *,
    canvas: tuple[int, int],
    overlap_threshold: float | Float[Array, ""] = OVERLAP_THRESHOLD,
    object_mask_threshold: float | Float[Array, ""] = 0.0,
    semantic_before_resize: bool = False,
    instance_scores: InstanceScores = "mask_probability",
) -> Postprocessed:
    """Turns the last prediction into results as the official inference does, for images of any sizes.

    class_probs: for each task to do, the K classes, then void (K1 = K + 1); 0 for the padded classes, from num_classes on.
    image_hw: the resized images' sizes; mask logits beyond their padding to 32 are never read.
    output_hw: the maps' sizes, at most the canvas.
    overlap_threshold: the minimum share of its own mask that a panoptic segment keeps.
    object_mask_threshold: the class score that a query must exceed to take part in the panoptic map.
    semantic_before_resize: class scores are formed at the padded size and then resized, as the official code does when
        only semantic maps are requested.
    instance_scores: see `DefaultsDescription`.
    """
    tasks = check_tasks(class_probs)

    def one_image(
        image: tuple[Float[Array, "h w Q"], dict[str, Float[Array, "Q K1"]], Int[Array, " 2"], Int[Array, " 2"]],
    ) -> Postprocessed:
        logits, probs, image_hw, output_hw = image
        probs = {task: values.astype(working_dtype(logits)) for task, values in probs.items()}
        real = {task: values[:, :-1] for task, values in probs.items()}
        folds: dict[str, Callable[[], Fold]] = {
            "panoptic": lambda: panoptic_fold(
                probs["panoptic"][None], is_thing, canvas, overlap_threshold, object_mask_threshold
            ),
            "semantic": lambda: semantic_fold(
                real["semantic"], num_classes, canvas, before_resize=semantic_before_resize
            ),
            "instances": lambda: instance_fold(real["instances"], is_thing, num_classes, canvas, instance_scores),
        }
        found = fold_tiles({task: folds[task]() for task in tasks}, logits, image_hw, output_hw, canvas)
        panoptic, segments = jax.tree.map(lambda x: x[0], found.get("panoptic", (None, None)))
        instances, mask_bits = found.get("instances", (None, None))
        return Postprocessed(panoptic, segments, found.get("semantic"), instances, mask_bits)

    results = lax.map(one_image, (mask_logits, dict(class_probs), image_hw, output_hw))
    crop = jax.tree.map(lambda x: x[:, : canvas[0], : canvas[1]], (results.panoptic, results.semantic))
    return checked(results._replace(panoptic=crop[0], semantic=crop[1]))
