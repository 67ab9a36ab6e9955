"""Masks and class scores of the queries → panoptic, semantic and instance results, on the device.

The official code works on the whole stack of masks [Q, H, W] at the photograph's size. Here the output is visited tile
by tile, and nothing of that size ever exists. Shapes are static, but the loops run over the tiles and classes that are
really there: one compiled program serves every output size up to the canvas and every vocabulary up to its bucket, at
a cost that follows the real sizes.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from fcclip_jax.conventions import OVERLAP_THRESHOLD, TASKS, ceil_div, check_tasks
from fcclip_jax.inference.resampling import (
    Window,
    for_each_tile,
    resized_logits,
    resized_probs,
    tiled_canvas,
    working_dtype,
)

MAX_INSTANCES = 100  # TEST.DETECTIONS_PER_IMAGE, stuff included
CLASS_BLOCK = 64


class Segments(NamedTuple):
    """Panoptic segments: row s describes the pixels whose id is s + 1; rows from `count` on are zeros."""

    count: Int[Array, " B"]
    class_ids: Int[Array, "B Q"]
    is_thing: Bool[Array, "B Q"]
    scores: Float[Array, "B Q"]  # of merged stuff, the best of the merged queries'
    areas: Int[Array, "B Q"]


class Instances(NamedTuple):
    """Things by falling score; rows from `count` on are to be ignored."""

    count: Int[Array, " B"]
    class_ids: Int[Array, "B N"]
    scores: Float[Array, "B N"]  # class score x mean mask probability inside the mask
    queries: Int[Array, "B N"]  # whose mask it is
    areas: Int[Array, "B N"]
    boxes: Int[Array, "B N 4"]  # x0, y0, x1, y1 around the mask's pixels, upper ends excluded; zeros if it is empty


class Postprocessed(NamedTuple):
    """Maps hold each image in [:height, :width] of its `output_hw`; what was not among the tasks is None."""

    panoptic: Int[Array, "B H W"] | None  # segment ids; 0 is void
    segments: Segments | None
    semantic: Int[Array, "B H W"] | None  # class ids
    instances: Instances | None
    mask_bits: (
        UInt8[Array, "B N W H8"] | None
    )  # of every instance, for `unpack_mask`: 8 rows to a byte, the first lowest


def postprocess(
    mask_logits: Float[Array, "B h w Q"],
    class_probs: Float[Array, "B Q K1"],
    is_thing: Bool[Array, " K"],
    num_classes: Int[Array, ""],
    image_hw: Int[Array, "B 2"],
    output_hw: Int[Array, "B 2"],
    *,
    canvas: tuple[int, int],
    tasks: Collection[str] = TASKS,
    overlap_threshold: float | Float[Array, ""] = OVERLAP_THRESHOLD,
    object_mask_threshold: float | Float[Array, ""] = 0.0,
    semantic_before_resize: bool = False,
) -> Postprocessed:
    """What the official inference makes of the last prediction, for images of any sizes.

    class_probs: the K classes, then void (K1 = K + 1); 0 for the padded classes, from num_classes on.
    image_hw: the resized images' sizes; mask logits beyond their padding to 32 are never read.
    output_hw: the maps' sizes, at most the canvas.
    overlap_threshold: the least share of its own mask that a panoptic segment keeps.
    object_mask_threshold: the class score that a query must exceed to take part in the panoptic map.
    semantic_before_resize: class scores are formed at the padded size and then resized, as the official code does where
        nothing but semantic maps is asked for.
    """
    tasks = check_tasks(tasks)
    height, width = tiled_canvas(canvas)

    def one_image(
        image: tuple[Float[Array, "h w Q"], Float[Array, "Q K1"], Int[Array, " 2"], Int[Array, " 2"]],
    ) -> Postprocessed:
        logits, probs, image_hw, output_hw = image
        dtype = working_dtype(logits)
        probs = probs.astype(dtype)
        num_queries = probs.shape[0]
        labels, scores = label_queries(probs, object_mask_threshold)
        blocks = class_blocks(probs[:, :-1])

        readers = []
        if set(tasks) != {"semantic"} or not semantic_before_resize:
            readers.append(resized_logits(logits, image_hw, output_hw, canvas))
        if "semantic" in tasks and semantic_before_resize:
            readers.append(resized_probs(logits, image_hw, output_hw, canvas))

        def visit(state: dict[str, Any], window: Window, *tiles: Float[Array, "R P Q"]) -> dict[str, Any]:
            # Outside the output a pixel is in no mask.
            tile_logits = jnp.where(window.inside[:, :, None], tiles[0], jnp.finfo(dtype).min)
            mask_probs = jax.nn.sigmoid(tile_logits)
            state = dict(state)
            if "panoptic" in state:
                state["panoptic"] = visit_panoptic(state["panoptic"], window, tile_logits, mask_probs, scores)
            if "instances" in state:
                state["instances"] = visit_instances(state["instances"], window, tile_logits, mask_probs)
            if "semantic" in state:
                weights = tiles[-1] if semantic_before_resize else mask_probs
                classes = classify_pixels(weights.reshape(-1, num_queries), blocks, num_classes)
                classes = classes.reshape(window.inside.shape)
                state["semantic"] = lax.dynamic_update_slice(state["semantic"], classes, (window.row, window.column))
            return state

        start: dict[str, Any] = {}
        if "panoptic" in tasks:
            start["panoptic"] = PanopticState(
                jnp.full((height, width), 2 * num_queries, jnp.int32),
                jnp.zeros((num_queries, 2), jnp.int32),
                jnp.zeros(num_queries, jnp.int32),
            )
        if "semantic" in tasks:
            start["semantic"] = jnp.zeros((height, width), jnp.int32)
        if "instances" in tasks:
            start["instances"] = InstanceState(
                jnp.zeros((num_queries, width, height // 8), jnp.uint8),
                jnp.zeros(num_queries, dtype),
                jnp.zeros(num_queries, jnp.int32),
            )
        end = for_each_tile(visit, start, output_hw, readers)

        panoptic, segments, instances, mask_bits = None, None, None, None
        if "panoptic" in tasks:
            panoptic, segments = finish_panoptic(end["panoptic"], labels, scores, is_thing, overlap_threshold)
        if "instances" in tasks:
            instances, mask_bits = finish_instances(end["instances"], probs[:, :-1], is_thing, num_classes)
        return Postprocessed(panoptic, segments, end.get("semantic"), instances, mask_bits)

    results = lax.map(one_image, (mask_logits, class_probs, image_hw, output_hw))
    crop = jax.tree.map(lambda x: x[:, : canvas[0], : canvas[1]], (results.panoptic, results.semantic))
    return results._replace(panoptic=crop[0], semantic=crop[1])


def panoptic_sweep(
    mask_logits: Float[Array, "B h w Q"],
    class_probs: Float[Array, "S B Q K1"],
    is_thing: Bool[Array, " K"],
    image_hw: Int[Array, "B 2"],
    output_hw: Int[Array, "B 2"],
    *,
    canvas: tuple[int, int],
    overlap_threshold: float | Float[Array, ""] = OVERLAP_THRESHOLD,
    object_mask_threshold: float | Float[Array, ""] = 0.0,
) -> tuple[Int[Array, "B S H W"], Segments]:
    """The panoptic part of `postprocess` for each of S classifications; masks are resized only once."""
    height, width = tiled_canvas(canvas)

    def one_image(
        image: tuple[Float[Array, "h w Q"], Float[Array, "S Q K1"], Int[Array, " 2"], Int[Array, " 2"]],
    ) -> tuple[Int[Array, "S H W"], Segments]:
        logits, probs, image_hw, output_hw = image
        dtype = working_dtype(logits)
        settings, num_queries = probs.shape[:2]
        labels, scores = jax.vmap(lambda probs: label_queries(probs, object_mask_threshold))(probs.astype(dtype))

        def visit(state: PanopticState, window: Window, tile: Float[Array, "R P Q"]) -> PanopticState:
            tile_logits = jnp.where(window.inside[:, :, None], tile, jnp.finfo(dtype).min)
            mask_probs = jax.nn.sigmoid(tile_logits)
            winners = lax.map(lambda scores: tile_winners(window, tile_logits, mask_probs, scores), scores)
            won = jax.vmap(lambda winners: histogram(winners, 2 * num_queries))(winners.reshape(settings, -1))
            return PanopticState(
                lax.dynamic_update_slice(state.winners, winners, (np.int32(0), window.row, window.column)),
                state.won + won.reshape(state.won.shape),
                state.areas + (tile_logits >= 0).sum(axis=(0, 1), dtype=jnp.int32),
            )

        start = PanopticState(
            jnp.full((settings, height, width), 2 * num_queries, jnp.int32),
            jnp.zeros((settings, num_queries, 2), jnp.int32),
            jnp.zeros(num_queries, jnp.int32),
        )
        end = for_each_tile(visit, start, output_hw, [resized_logits(logits, image_hw, output_hw, canvas)])

        def finish(setting: tuple[Array, ...]) -> tuple[Int[Array, "H W"], Segments]:
            winners, won, labels, scores = setting
            state = PanopticState(winners, won, end.areas)
            return finish_panoptic(state, labels, scores, is_thing, overlap_threshold)

        return lax.map(finish, (end.winners, end.won, labels, scores))

    panoptic, segments = lax.map(one_image, (mask_logits, class_probs.swapaxes(0, 1), image_hw, output_hw))
    return panoptic[:, :, : canvas[0], : canvas[1]], segments


def semantic_scores(
    mask_logits: Float[Array, "B h w Q"],
    class_probs: Float[Array, "B Q K1"],
    image_hw: Int[Array, "B 2"],
    output_hw: Int[Array, "B 2"],
    *,
    canvas: tuple[int, int],
    before_resize: bool = False,
) -> Float[Array, "B H W K"]:
    """Every class's score at every pixel; slice the padded classes off class_probs first, for they cost as much."""
    height, width = tiled_canvas(canvas)

    def one_image(
        image: tuple[Float[Array, "h w Q"], Float[Array, "Q K1"], Int[Array, " 2"], Int[Array, " 2"]],
    ) -> Float[Array, "H W K"]:
        logits, probs, image_hw, output_hw = image
        dtype = working_dtype(logits)
        probs = probs[:, :-1].astype(dtype)
        reader = (resized_probs if before_resize else resized_logits)(logits, image_hw, output_hw, canvas)

        def visit(scores: Float[Array, "H W K"], window: Window, tile: Float[Array, "R P Q"]) -> Float[Array, "H W K"]:
            weights = tile if before_resize else jax.nn.sigmoid(tile)
            tile_scores = jnp.matmul(weights, probs, precision=lax.Precision.HIGHEST)
            return lax.dynamic_update_slice(scores, tile_scores, (window.row, window.column, np.int32(0)))

        empty = jnp.zeros((height, width, probs.shape[1]), dtype)
        return for_each_tile(visit, empty, output_hw, [reader])

    scores = lax.map(one_image, (mask_logits, class_probs, image_hw, output_hw))
    return scores[:, : canvas[0], : canvas[1]]


def label_queries(
    probs: Float[Array, "Q K1"], object_mask_threshold: float | Float[Array, ""]
) -> tuple[Int[Array, " Q"], Float[Array, " Q"]]:
    """Each query's best class and its score; of a query that takes no part in the panoptic map, the score is -1."""
    labels = probs.argmax(axis=1).astype(jnp.int32)
    scores = probs.max(axis=1)
    # -1 is less than any score x probability.
    return labels, jnp.where((labels < probs.shape[1] - 1) & (scores > object_mask_threshold), scores, -1.0)


class PanopticState(NamedTuple):
    winners: Int[Array, "H W"]  # 2 x best query, + 1 where its own mask leaves the pixel out; 2 Q outside the output
    won: Int[Array, "Q 2"]  # pixels won inside and outside the query's own mask
    areas: Int[Array, " Q"]


def visit_panoptic(
    state: PanopticState,
    window: Window,
    logits: Float[Array, "R P Q"],
    mask_probs: Float[Array, "R P Q"],
    scores: Float[Array, " Q"],
) -> PanopticState:
    winners = tile_winners(window, logits, mask_probs, scores)
    return PanopticState(
        lax.dynamic_update_slice(state.winners, winners, (window.row, window.column)),
        state.won + histogram(winners.reshape(-1), 2 * scores.shape[0]).reshape(-1, 2),
        state.areas + (logits >= 0).sum(axis=(0, 1), dtype=jnp.int32),
    )


def tile_winners(
    window: Window, logits: Float[Array, "R P Q"], mask_probs: Float[Array, "R P Q"], scores: Float[Array, " Q"]
) -> Int[Array, "R P"]:
    """A tile of PanopticState.winners."""
    nobody = 2 * scores.shape[0]
    weighted = mask_probs * scores[None, None, :]
    best = weighted.max(axis=2, keepdims=True)
    # The first of equals, as jnp.argmax has it, but at a quarter of its time on a CPU.
    keys = 2 * lax.broadcasted_iota(jnp.int32, weighted.shape, 2) + (logits < 0).astype(jnp.int32)
    winners = jnp.where(weighted == best, keys, nobody).min(axis=2)
    return jnp.where(window.inside, winners, nobody)


def histogram(values: Int[Array, " N"], bins: int) -> Int[Array, " bins"]:
    """Counts of 0 .. bins - 1 among values up to `bins`: one-hot products of their digits in base 32, no scatter."""
    high = (values // 32)[:, None] == jnp.arange(bins // 32 + 1, dtype=jnp.int32)[None, :]
    low = (values % 32)[:, None] == jnp.arange(32, dtype=jnp.int32)[None, :]
    counts = high.astype(jnp.float32).T @ low.astype(jnp.float32)  # exact: a tile is far from 2^24 pixels
    return counts.astype(jnp.int32).reshape(-1)[:bins]


def finish_panoptic(
    state: PanopticState,
    labels: Int[Array, " Q"],
    scores: Float[Array, " Q"],
    is_thing: Bool[Array, " K"],
    overlap_threshold: float | Float[Array, ""],
) -> tuple[Int[Array, "H W"], Segments]:
    """The official loop over the queries, fcclip.py's panoptic_inference, as comparisons between queries."""
    queries = jnp.arange(labels.shape[0], dtype=jnp.int32)
    is_thing = is_thing[jnp.minimum(labels, len(is_thing) - 1)]
    inside, outside = state.won[:, 0], state.won[:, 1]
    overlap = (inside + outside).astype(scores.dtype) / jnp.maximum(state.areas, 1).astype(scores.dtype)
    visible = (scores >= 0) & (inside > 0) & (overlap >= overlap_threshold)
    # A query founds a segment, or is of a stuff class that an earlier visible one has founded already.
    joinable = (labels[:, None] == labels[None, :]) & ~is_thing[:, None] & visible[None, :]
    founder = jnp.where(joinable, queries[None, :], queries[:, None]).min(axis=1)
    founds = visible & (founder == queries)
    ids = jnp.where(visible, jnp.cumsum(founds, dtype=jnp.int32)[founder], 0)
    table = jnp.stack([ids, jnp.zeros_like(ids)], axis=1).reshape(-1)
    panoptic = jnp.append(table, 0)[state.winners]

    member = ids[None, :] == queries[:, None] + 1  # [segment, query]
    founded_by = member & founds[None, :]
    return panoptic, Segments(
        founds.sum(dtype=jnp.int32),
        jnp.where(founded_by, labels[None, :], 0).sum(axis=1, dtype=jnp.int32),
        (founded_by & is_thing[None, :]).any(axis=1),
        jnp.where(member, scores[None, :], 0.0).max(axis=1),
        jnp.where(member, inside[None, :], 0).sum(axis=1, dtype=jnp.int32),
    )


def class_blocks(probs: Float[Array, "Q K"]) -> Float[Array, "N Q k"]:
    count = ceil_div(probs.shape[1], CLASS_BLOCK)
    padded = jnp.pad(probs, ((0, 0), (0, count * CLASS_BLOCK - probs.shape[1])))
    return padded.reshape(-1, count, CLASS_BLOCK).transpose(1, 0, 2)


def classify_pixels(
    mask_probs: Float[Array, "N Q"], blocks: Float[Array, "_ Q k"], num_classes: Int[Array, ""]
) -> Int[Array, " N"]:
    """The class with the highest sum over queries of class score x mask probability, the first of equals."""

    def visit(index: Int[Array, ""], best: tuple[Float[Array, " N"], Int[Array, " N"]]) -> Any:
        block = lax.dynamic_index_in_dim(blocks, index, keepdims=False)
        scores = jnp.matmul(mask_probs, block, precision=lax.Precision.HIGHEST)
        top = scores.max(axis=1)
        iota = lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        label = jnp.where(scores == top[:, None], iota, CLASS_BLOCK).min(axis=1) + index * CLASS_BLOCK
        return jnp.maximum(top, best[0]), jnp.where(top > best[0], label, best[1])

    pixels = mask_probs.shape[0]
    start = jnp.full(pixels, -1.0, mask_probs.dtype), jnp.zeros(pixels, jnp.int32)
    return lax.fori_loop(0, ceil_div(num_classes, CLASS_BLOCK), visit, start)[1]


class InstanceState(NamedTuple):
    mask_bits: UInt8[Array, "Q W H8"]  # logit > 0
    prob_sums: Float[Array, " Q"]  # mask probability, summed inside the mask
    areas: Int[Array, " Q"]


def visit_instances(
    state: InstanceState, window: Window, logits: Float[Array, "R P Q"], mask_probs: Float[Array, "R P Q"]
) -> InstanceState:
    rows, columns, num_queries = logits.shape
    positive = logits > 0
    place = jnp.left_shift(jnp.uint8(1), lax.broadcasted_iota(jnp.uint8, (1, 8, 1, 1), 1))
    bits = (positive.reshape(rows // 8, 8, columns, num_queries).astype(jnp.uint8) * place).sum(axis=1, dtype=jnp.uint8)
    bits = lax.optimization_barrier(bits)  # or the bits would be made in the order that they are stored in, from afar
    return InstanceState(
        lax.dynamic_update_slice(
            state.mask_bits, bits.transpose(2, 1, 0), (np.int32(0), window.column, window.row // 8)
        ),
        state.prob_sums + jnp.where(positive, mask_probs, 0.0).sum(axis=(0, 1)),
        state.areas + lax.population_count(bits).sum(axis=(0, 1), dtype=jnp.int32),
    )


def finish_instances(
    state: InstanceState, class_probs: Float[Array, "Q K"], is_thing: Bool[Array, " K"], num_classes: Int[Array, ""]
) -> tuple[Instances, UInt8[Array, "N W H8"]]:
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
    """One instance's mask from its bits, on the host; column by column in memory, as COCO's RLE reads it."""
    height, width = output_hw
    bits = mask_bits[:width, : ceil_div(height, 8)]
    return np.unpackbits(bits, axis=1, count=height, bitorder="little").view(bool).T
