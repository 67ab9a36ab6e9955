"""Panoptic maps: each pixel is assigned to the query with the highest class score x mask probability."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.conventions import OVERLAP_THRESHOLD
from fcclip_jax.inference.postprocess.folds import (
    Fold,
    Masks,
    Tile,
    count_pixels,
    first_of_best,
    fold_blocks,
    fold_tiles,
)
from fcclip_jax.inference.resampling import BOUND_MARGIN, Bounds, tiled_canvas, working_dtype
from fcclip_jax.structs import AnyArray


class Segments(NamedTuple):
    """Panoptic segments: row s describes the pixels whose id is s + 1; rows from `number` on are zeros."""

    number: Int[AnyArray, "*B"]
    class_ids: Int[AnyArray, "*B Q"]
    is_thing: Bool[AnyArray, "*B Q"]
    scores: Float[AnyArray, "*B Q"]
    """Class scores; merged stuff has the best of the merged queries'."""
    areas: Int[AnyArray, "*B Q"]


class Contest(NamedTuple):
    """What has won the pixels of a tile, among the queries so far."""

    best: Float[Array, "*S R P"]
    """Class score x mask probability; less than 0 before the first query."""
    winners: Int[Array, "*S R P"]
    """As in `PanopticState`; 2 Q before the first query."""


class PanopticState(NamedTuple):
    """The state of one pass over the tiles, for S classifications of the same masks."""

    winners: Int[Array, "S H W"]
    """2 x the best query, + 1 where its own mask excludes the pixel; 2 Q outside the output."""
    won: Int[Array, "S Q 2"]
    """Pixels won inside and outside the query's own mask."""
    areas: Int[Array, " Q"]


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

    def one_image(
        image: tuple[Float[Array, "h w Q"], Float[Array, "S Q K1"], Int[Array, " 2"], Int[Array, " 2"]],
    ) -> tuple[Int[Array, "S H W"], Segments]:
        logits, probs, image_hw, output_hw = image
        fold = panoptic_fold(
            probs.astype(working_dtype(logits)), is_thing, canvas, overlap_threshold, object_mask_threshold
        )
        return fold_tiles({"panoptic": fold}, logits, image_hw, output_hw, canvas)["panoptic"]

    panoptic, segments = lax.map(one_image, (mask_logits, class_probs.swapaxes(0, 1), image_hw, output_hw))
    return panoptic[:, :, : canvas[0], : canvas[1]], segments


def panoptic_fold(
    probs: Float[Array, "S Q K1"],
    is_thing: Bool[Array, " K"],
    canvas: tuple[int, int],
    overlap_threshold: float | Float[Array, ""],
    object_mask_threshold: float | Float[Array, ""],
) -> Fold:
    """One image's panoptic maps [S, H, W] and their segments, for S classifications of the same masks."""
    settings, num_queries = probs.shape[:2]
    labels, scores = jax.vmap(lambda probs: label_queries(probs, object_mask_threshold))(probs)
    start = PanopticState(
        jnp.full((settings, *tiled_canvas(canvas)), 2 * num_queries, jnp.int32),
        jnp.zeros((settings, num_queries, 2), jnp.int32),
        jnp.zeros(num_queries, jnp.int32),
    )

    takes_part = (scores >= 0).any(axis=0)

    def visit(state: PanopticState, tile: Tile) -> PanopticState:
        if tile.bounds is None:
            found = contest_tile(tile, scores, takes_part)
        else:
            counts = takes_part & counting_queries(tile.bounds, scores)
            edges = counts & (tile.bounds.low < 0) & (tile.bounds.high >= 0)
            found = lax.cond(
                (counts.sum() <= 1) & ~edges.any(),
                lambda: uniform_tile(tile, scores, counts),
                lambda: contest_tile(tile, scores, counts),
            )
        return PanopticState(
            lax.dynamic_update_slice(state.winners, found.winners, (np.int32(0), tile.window.row, tile.window.column)),
            state.won + found.won,
            state.areas + found.areas,
        )

    def finish(state: PanopticState) -> tuple[Int[Array, "S H W"], Segments]:
        def finish_setting(
            setting: tuple[Int[Array, "H W"], Int[Array, "Q 2"], Int[Array, " Q"], Float[Array, " Q"]],
        ) -> tuple[Int[Array, "H W"], Segments]:
            winners, won, labels, scores = setting
            ids, segments = found_segments(won, state.areas, labels, scores, is_thing, overlap_threshold)
            # Ids by winner: the query's, and void for the pixels that its mask excludes; the last entry is outside the output.
            table = jnp.append(jnp.stack([ids, jnp.zeros_like(ids)], axis=1).reshape(-1), 0)
            return table[winners], segments

        return lax.map(finish_setting, (state.winners, state.won, labels, scores))

    return Fold(start, visit, finish)


def label_queries(
    probs: Float[Array, "Q K1"], object_mask_threshold: float | Float[Array, ""]
) -> tuple[Int[Array, " Q"], Float[Array, " Q"]]:
    """Returns each query's best class and its score; the score is -1 where the query takes no part in the map."""
    labels = probs.argmax(axis=1).astype(jnp.int32)
    scores = probs.max(axis=1)
    # -1 is less than any score x probability.
    return labels, jnp.where((labels < probs.shape[1] - 1) & (scores > object_mask_threshold), scores, -1.0)


def counting_queries(bounds: Bounds, scores: Float[Array, "S Q"]) -> Bool[Array, " Q"]:
    """Returns which queries may win a pixel of a tile, in any classification, or have an edge of their mask there."""
    low, high = (scores * jax.nn.sigmoid(bound)[None, :] for bound in bounds)
    may_win = ~(high < (1 - BOUND_MARGIN) * low.max(axis=1, keepdims=True))  # what is no number rules nothing out
    return may_win.any(axis=0) | ((bounds.low < 0) & (bounds.high >= 0))


def contest_tile(tile: Tile, scores: Float[Array, "S Q"], counts: Bool[Array, " Q"]) -> PanopticState:
    """Returns a tile's part of the state, from the masks of the queries that count."""
    settings, num_queries = scores.shape
    inside = tile.window.inside

    def visit_block(
        carry: tuple[Contest, Int[Array, " Q"]], queries: Int[Array, " B"], masks: Masks
    ) -> tuple[Contest, Int[Array, " Q"]]:
        contest, areas = carry
        block = scores.at[:, queries].get(mode="fill", fill_value=-1.0)
        contest = lax.map(lambda one: compete(one[0], one[1], queries, masks.probs), (contest, block))
        pixels = count_pixels((masks.probs >= 0.5) & inside[:, :, None])
        return contest, areas.at[queries].add(pixels, mode="drop")

    shape = (settings, *inside.shape)
    nobody = Contest(jnp.full(shape, -0.5, scores.dtype), jnp.full(shape, 2 * num_queries, jnp.int32))
    contest, areas = fold_blocks(visit_block, (nobody, jnp.zeros(num_queries, jnp.int32)), tile, counts)
    winners = jnp.where(inside[None], contest.winners, 2 * num_queries)
    won = jax.vmap(lambda winners: histogram(winners, 2 * num_queries))(winners.reshape(settings, -1))
    areas = areas if tile.bounds is None else jnp.where(tile.bounds.low >= 0, inside.sum(dtype=jnp.int32), areas)
    return PanopticState(winners, won.reshape(settings, num_queries, 2), areas)


def uniform_tile(tile: Tile, scores: Float[Array, "S Q"], counts: Bool[Array, " Q"]) -> PanopticState:
    """Returns what `contest_tile` does for a tile where at most one query counts, which has no edge there."""
    assert tile.bounds is not None  # present, because it says what counts
    settings, num_queries = scores.shape
    query = jnp.argmax(counts).astype(jnp.int32)
    wins = counts.any() & (scores[:, query] >= 0)
    winner = jnp.where(wins, 2 * query + (tile.bounds.high[query] < 0).astype(jnp.int32), 2 * num_queries)
    pixels = tile.window.inside.sum(dtype=jnp.int32)
    won = jnp.where(jnp.arange(2 * num_queries, dtype=jnp.int32)[None, :] == winner[:, None], pixels, 0)
    return PanopticState(
        jnp.where(tile.window.inside[None], winner[:, None, None], 2 * num_queries),
        won.reshape(settings, num_queries, 2),
        jnp.where(tile.bounds.low >= 0, pixels, 0),
    )


def compete(
    contest: Contest, scores: Float[Array, " B"], queries: Int[Array, " B"], probs: Float[Array, "R P B"]
) -> Contest:
    """Lets more queries compete for the pixels of a tile, in one classification; of equals, the earlier one wins.

    scores: -1 for those that take no part.
    """
    scores = scores[None, None, :]
    weighted = jnp.where(scores >= 0, probs * scores, -1.0)
    best = first_of_best(weighted)
    excluded = jnp.take_along_axis(probs, best[:, :, None], axis=2)[:, :, 0] < 0.5
    top = weighted.max(axis=-1)
    return Contest(
        jnp.maximum(top, contest.best),
        jnp.where(top > contest.best, 2 * queries[best] + excluded.astype(jnp.int32), contest.winners),
    )


def histogram(values: Int[Array, " N"], bins: int) -> Int[Array, " bins"]:
    """Counts 0 .. bins - 1 among values up to `bins`: one-hot products of their digits in base 32, without a scatter."""
    high = (values // 32)[:, None] == jnp.arange(bins // 32 + 1, dtype=jnp.int32)[None, :]
    low = (values % 32)[:, None] == jnp.arange(32, dtype=jnp.int32)[None, :]
    counts = high.astype(jnp.float32).T @ low.astype(jnp.float32)  # exact: a tile is far from 2^24 pixels
    return counts.astype(jnp.int32).reshape(-1)[:bins]


def found_segments(
    won: Int[Array, "Q 2"],
    areas: Int[Array, " Q"],
    labels: Int[Array, " Q"],
    scores: Float[Array, " Q"],
    is_thing: Bool[Array, " K"],
    overlap_threshold: float | Float[Array, ""],
) -> tuple[Int[Array, " Q"], Segments]:
    """Returns the id of each query's segment (0 without one), and the segments.

    The official loop over the queries, fcclip.py's panoptic_inference, as comparisons between queries.
    """
    queries = jnp.arange(labels.shape[0], dtype=jnp.int32)
    is_thing = is_thing[jnp.minimum(labels, len(is_thing) - 1)]
    inside, outside = won[:, 0], won[:, 1]
    overlap = (inside + outside).astype(scores.dtype) / jnp.maximum(areas, 1).astype(scores.dtype)
    visible = (scores >= 0) & (inside > 0) & (overlap >= overlap_threshold)
    # A query starts a segment, or joins the one that an earlier visible query of the same stuff class started.
    joinable = (labels[:, None] == labels[None, :]) & ~is_thing[:, None] & visible[None, :]
    founder = jnp.where(joinable, queries[None, :], queries[:, None]).min(axis=1)
    founds = visible & (founder == queries)
    ids = jnp.where(visible, jnp.cumsum(founds, dtype=jnp.int32)[founder], 0)

    member = ids[None, :] == queries[:, None] + 1  # [segment, query]
    founded_by = member & founds[None, :]
    return ids, Segments(
        founds.sum(dtype=jnp.int32),
        jnp.where(founded_by, labels[None, :], 0).sum(axis=1, dtype=jnp.int32),
        (founded_by & is_thing[None, :]).any(axis=1),
        jnp.where(member, scores[None, :], 0.0).max(axis=1),
        jnp.where(member, inside[None, :], 0).sum(axis=1, dtype=jnp.int32),
    )
