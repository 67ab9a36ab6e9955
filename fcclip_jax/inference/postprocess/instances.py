"""Instances: the best pairs of query and class, with masks of one bit a pixel."""

import functools
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from fcclip_jax.conventions import ceil_div
from fcclip_jax.inference.postprocess.folds import Fold, Masks, Tile, count_pixels, fold_blocks
from fcclip_jax.inference.resampling import Window, tiled_canvas
from fcclip_jax.structs import AnyArray

MAX_INSTANCES = 100
"""TEST.DETECTIONS_PER_IMAGE, stuff included."""

InstanceScores = Literal["mask_probability", "mask_logit"]
"""What multiplies the class score: see `models.descriptions.DefaultsDescription`."""


class Instances(NamedTuple):
    """Things by falling score; rows from `number` on have no meaning."""

    number: Int[AnyArray, "*B"]
    class_ids: Int[AnyArray, "*B N"]
    scores: Float[AnyArray, "*B N"]
    """Class score x mean mask probability (or mean logit) inside the mask."""
    queries: Int[AnyArray, "*B N"]
    """The query whose mask it is."""
    areas: Int[AnyArray, "*B N"]
    boxes: Int[AnyArray, "*B N 4"]
    """x0, y0, x1, y1 around the mask's pixels, upper ends excluded; zeros if the mask is empty."""
    mask_rows: Int[AnyArray, "*B N"]
    """The row of its mask in the mask bits, which stay in the order in which they were made: they are the largest array."""


class Pairs(NamedTuple):
    """The best pairs of query and class, by falling class score; their masks decide the final order."""

    class_ids: Int[Array, " N"]
    scores: Float[Array, " N"]
    queries: Int[Array, " N"]
    kept: Bool[Array, " N"]
    """True for things."""


class InstanceState(NamedTuple):
    """The state of the pass over the tiles; row n is the mask of pair n."""

    mask_bits: UInt8[Array, "N W H8"]
    """logit > 0: column by column, 8 rows to a byte, the first in the lowest bit."""
    sums: Float[Array, " N"]
    """Mask probability or logit, summed inside the mask."""
    areas: Int[Array, " N"]


def instance_fold(
    probs: Float[Array, "Q K"],
    is_thing: Bool[Array, " K"],
    num_classes: Int[Array, ""],
    canvas: tuple[int, int],
    scores: InstanceScores,
) -> Fold:
    """One image's instances and their mask bits [N, W, H8].

    The class scores alone choose the pairs, so that only their queries' masks are resized.
    """
    pairs = best_pairs(probs, is_thing, num_classes)
    count = pairs.queries.shape[0]
    height, width = tiled_canvas(canvas)
    start = InstanceState(
        jnp.zeros((count, width, height // 8), jnp.uint8), jnp.zeros(count, probs.dtype), jnp.zeros(count, jnp.int32)
    )

    def visit(state: InstanceState, tile: Tile) -> InstanceState:
        counts = pairs.kept if tile.bounds is None else pairs.kept & (tile.bounds.high > 0)
        add = functools.partial(add_masks, window=tile.window, scores=scores)
        return fold_blocks(add, state, tile, counts)

    return Fold(start, visit, lambda state: rank_instances(state, pairs), queries=pairs.queries)


def best_pairs(probs: Float[Array, "Q K"], is_thing: Bool[Array, " K"], num_classes: Int[Array, ""]) -> Pairs:
    """Returns the MAX_INSTANCES pairs of query and class with the highest class scores."""
    classes = probs.shape[1]
    real = jnp.arange(classes, dtype=jnp.int32) < num_classes
    candidates = jnp.where(real[None, :], probs, -1.0).reshape(-1)
    scores, indices = lax.top_k(candidates, min(MAX_INSTANCES, candidates.size))
    labels, queries = indices % classes, indices // classes
    return Pairs(labels, scores, queries, (scores >= 0) & is_thing[labels])


def add_masks(
    state: InstanceState, pairs: Int[Array, " B"], masks: Masks, *, window: Window, scores: InstanceScores
) -> InstanceState:
    """Adds the masks of some pairs in one tile to the bits, the sums and the areas."""
    assert masks.logits is not None  # present, because the fold has before_resize=False
    rows, columns, count = masks.logits.shape
    positive = (masks.logits > 0) & window.inside[:, :, None]
    # XLA's CPU backend sums float32 apart from the update of the state, which runs on one core; the sums are exact.
    place = jnp.asarray(2.0 ** np.arange(8), jnp.float32)[None, :, None, None]
    bits = jnp.where(positive.reshape(rows // 8, 8, columns, count), place, 0.0).sum(axis=1).astype(jnp.uint8)
    corners = jnp.stack([pairs, jnp.full_like(pairs, window.column), jnp.full_like(pairs, window.row // 8)], axis=1)
    places = lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, 1, 2)
    )
    mask_bits = lax.scatter(
        state.mask_bits,
        corners,
        bits.transpose(2, 1, 0),
        places,
        unique_indices=True,
        mode=lax.GatherScatterMode.FILL_OR_DROP,
    )
    values = masks.probs if scores == "mask_probability" else masks.logits
    sums = jnp.where(positive, values, 0.0).sum(axis=(0, 1))
    return InstanceState(
        mask_bits,
        state.sums.at[pairs].add(sums, mode="drop"),
        state.areas.at[pairs].add(count_pixels(positive), mode="drop"),
    )


def rank_instances(state: InstanceState, pairs: Pairs) -> tuple[Instances, UInt8[Array, "N W H8"]]:
    """Sorts the things by their final score."""
    means = state.sums / (state.areas.astype(pairs.scores.dtype) + 1e-6)
    scores = jnp.where(pairs.kept, pairs.scores * means, -1.0)
    order = jnp.argsort(scores, descending=True, stable=True)
    rows = jnp.arange(order.shape[0], dtype=jnp.int32)
    columns = pairs.class_ids, scores, pairs.queries, state.areas, mask_boxes(state.mask_bits), rows
    table = (column[order] for column in columns)
    return Instances(pairs.kept.sum(dtype=jnp.int32), *table), state.mask_bits


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
