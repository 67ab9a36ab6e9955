"""Instances: the best pairs of query and class, with masks of one bit a pixel."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from fcclip_jax.conventions import ceil_div
from fcclip_jax.inference.postprocess.folds import Fold, Tile
from fcclip_jax.inference.resampling import tiled_canvas
from fcclip_jax.structs import AnyArray

MAX_INSTANCES = 100
"""TEST.DETECTIONS_PER_IMAGE, stuff included."""


class Instances(NamedTuple):
    """Things by falling score; rows from `number` on have no meaning."""

    number: Int[AnyArray, "*B"]
    class_ids: Int[AnyArray, "*B N"]
    scores: Float[AnyArray, "*B N"]
    """Class score x mean mask probability inside the mask."""
    queries: Int[AnyArray, "*B N"]
    """The query whose mask it is."""
    areas: Int[AnyArray, "*B N"]
    boxes: Int[AnyArray, "*B N 4"]
    """x0, y0, x1, y1 around the mask's pixels, upper ends excluded; zeros if the mask is empty."""


class InstanceState(NamedTuple):
    """The state of the pass over the tiles."""

    mask_bits: UInt8[Array, "Q W H8"]
    """logit > 0: 8 rows to a byte, the first in the lowest bit."""
    prob_sums: Float[Array, " Q"]
    """Mask probability, summed inside the mask."""
    areas: Int[Array, " Q"]


def instance_fold(
    probs: Float[Array, "Q K"], is_thing: Bool[Array, " K"], num_classes: Int[Array, ""], canvas: tuple[int, int]
) -> Fold:
    """One image's instances and their mask bits [N, W, H8]."""
    num_queries = probs.shape[0]
    height, width = tiled_canvas(canvas)
    start = InstanceState(
        jnp.zeros((num_queries, width, height // 8), jnp.uint8),
        jnp.zeros(num_queries, probs.dtype),
        jnp.zeros(num_queries, jnp.int32),
    )
    return Fold(start, visit_instances, lambda state: best_instances(state, probs, is_thing, num_classes))


def visit_instances(state: InstanceState, tile: Tile) -> InstanceState:
    """Adds one tile to the bits, the sums and the areas."""
    assert tile.logits is not None  # present, because the fold has before_resize=False
    rows, columns, num_queries = tile.logits.shape
    positive = tile.logits > 0
    place = jnp.left_shift(jnp.uint8(1), lax.broadcasted_iota(jnp.uint8, (1, 8, 1, 1), 1))
    bits = (positive.reshape(rows // 8, 8, columns, num_queries).astype(jnp.uint8) * place).sum(axis=1, dtype=jnp.uint8)
    # Without the barrier XLA would compute the bits in the order in which they are stored, from strided reads.
    bits = lax.optimization_barrier(bits)
    corner = (np.int32(0), tile.window.column, tile.window.row // 8)
    return InstanceState(
        lax.dynamic_update_slice(state.mask_bits, bits.transpose(2, 1, 0), corner),
        state.prob_sums + jnp.where(positive, tile.probs, 0.0).sum(axis=(0, 1)),
        state.areas + lax.population_count(bits).sum(axis=(0, 1), dtype=jnp.int32),
    )


def best_instances(
    state: InstanceState, class_probs: Float[Array, "Q K"], is_thing: Bool[Array, " K"], num_classes: Int[Array, ""]
) -> tuple[Instances, UInt8[Array, "N W H8"]]:
    """Ranks the pairs of query and class by class score, then the things among the best by their final score."""
    classes = class_probs.shape[1]
    real = jnp.arange(classes, dtype=jnp.int32) < num_classes
    candidates = jnp.where(real[None, :], class_probs, -1.0).reshape(-1)
    scores, indices = lax.top_k(candidates, min(MAX_INSTANCES, candidates.size))
    labels, queries = indices % classes, indices // classes
    kept = (scores >= 0) & is_thing[labels]

    mean_probs = state.prob_sums / (state.areas.astype(scores.dtype) + 1e-6)
    scores = jnp.where(kept, scores * mean_probs[queries], -1.0)
    order = jnp.argsort(scores, descending=True, stable=True)
    labels, scores, queries = labels[order], scores[order], queries[order]
    mask_bits = state.mask_bits[queries]
    table = labels, scores, queries, state.areas[queries], mask_boxes(mask_bits)
    return Instances(kept.sum(dtype=jnp.int32), *table), mask_bits


def mask_boxes(mask_bits: UInt8[Array, "N W H8"]) -> Int[Array, "N 4"]:
    """Returns the boxes around the masks, as Instances.boxes."""
    column_bits, row_bits = (lax.reduce(mask_bits, np.uint8(0), lax.bitwise_or, (axis,)) for axis in (2, 1))
    in_column = column_bits != 0
    in_row = row_bits[:, :, None] >> lax.broadcasted_iota(jnp.uint8, (1, 1, 8), 2) & 1
    in_row = in_row.reshape(mask_bits.shape[0], -1) > 0

    def ends(present: Bool[Array, "N side"]) -> tuple[Int[Array, " N"], Int[Array, " N"]]:
        positions = lax.broadcasted_iota(jnp.int32, present.shape, 1)
        end = jnp.where(present, positions + 1, 0).max(axis=1)
        return jnp.where(present, positions, end[:, None]).min(axis=1), end

    x0, x1 = ends(in_column)
    y0, y1 = ends(in_row)
    return jnp.stack([x0, y0, x1, y1], axis=1)


def unpack_mask(mask_bits: UInt8[np.ndarray, "W2 H8"], output_hw: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Unpacks one instance's bits on the host; the result is stored column by column, as COCO's RLE reads it."""
    height, width = output_hw
    bits = mask_bits[:width, : ceil_div(height, 8)]
    return np.unpackbits(bits, axis=1, count=height, bitorder="little").view(bool).T
