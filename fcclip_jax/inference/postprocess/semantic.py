"""Semantic maps: each pixel gets the class with the highest sum over queries of class score x mask probability."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.conventions import ceil_div
from fcclip_jax.inference.postprocess.folds import Fold, Tile, chosen_first, first_of_best, fold_tiles
from fcclip_jax.inference.resampling import BOUND_MARGIN, Bounds, tiled_canvas, working_dtype

CLASS_BLOCKS = 16, 64, 160
"""Classes that one matrix product scores, the smallest that holds all or else the last: no array holds the scores of all classes,
and products of 160 columns are a fifth faster on a CPU than of 64."""


def semantic_scores(
    mask_logits: Float[Array, "B h w Q"],
    class_probs: Float[Array, "B Q K1"],
    image_hw: Int[Array, "B 2"],
    output_hw: Int[Array, "B 2"],
    *,
    canvas: tuple[int, int],
    before_resize: bool = False,
) -> Float[Array, "B H W K"]:
    """Returns every class's score at every pixel. Remove padded classes from class_probs first: they cost as much."""

    def one_image(
        image: tuple[Float[Array, "h w Q"], Float[Array, "Q K1"], Int[Array, " 2"], Int[Array, " 2"]],
    ) -> Float[Array, "H W K"]:
        logits, probs, image_hw, output_hw = image
        probs = probs[:, :-1].astype(working_dtype(logits))

        def visit(scores: Float[Array, "H W K"], tile: Tile) -> Float[Array, "H W K"]:
            tile_scores = jnp.matmul(tile.read(None).probs, probs, precision=lax.Precision.HIGHEST)
            return lax.dynamic_update_slice(scores, tile_scores, (tile.window.row, tile.window.column, np.int32(0)))

        start = jnp.zeros((*tiled_canvas(canvas), probs.shape[1]), probs.dtype)
        fold = Fold(start, visit, lambda scores: scores, before_resize)
        return fold_tiles({"scores": fold}, logits, image_hw, output_hw, canvas)["scores"]

    scores = lax.map(one_image, (mask_logits, class_probs, image_hw, output_hw))
    return scores[:, : canvas[0], : canvas[1]]


def semantic_fold(
    probs: Float[Array, "Q K"], num_classes: Int[Array, ""], canvas: tuple[int, int], *, before_resize: bool
) -> Fold:
    """One image's map of classes [H, W]."""

    def visit(classes: Int[Array, "H W"], tile: Tile) -> Int[Array, "H W"]:
        shape = tile.window.inside.shape
        chosen, count = chosen_first(possible_classes(tile.bounds, probs, num_classes))

        def compare() -> Int[Array, "R P"]:
            mask_probs = tile.read(None).probs.reshape(-1, probs.shape[0])
            class_probs = probs.T.at[chosen].get(mode="fill", fill_value=0.0)
            found = classify_pixels(mask_probs, class_probs, count)
            return chosen[found].reshape(shape)

        found = lax.cond(count == 1, lambda: jnp.full(shape, chosen[0]), compare)
        return lax.dynamic_update_slice(classes, found, (tile.window.row, tile.window.column))

    return Fold(jnp.zeros(tiled_canvas(canvas), jnp.int32), visit, lambda classes: classes, before_resize)


def possible_classes(
    bounds: Bounds | None, probs: Float[Array, "Q K"], num_classes: Int[Array, ""]
) -> Bool[Array, " K"]:
    """Returns which classes may be the best of a pixel in a tile: those whose score can reach the best of all least scores."""
    real = jnp.arange(probs.shape[1], dtype=jnp.int32) < num_classes
    if bounds is None:
        return real
    masks = jax.nn.sigmoid(jnp.stack([bounds.low, bounds.high]))
    least, most = jnp.matmul(masks, probs, precision=lax.Precision.HIGHEST)
    # What is no number rules nothing out.
    return real & ~(most < (1 - BOUND_MARGIN) * jnp.where(real, least, -1.0).max())


def classify_pixels(
    mask_probs: Float[Array, "N Q"], class_probs: Float[Array, "K Q"], num_classes: Int[Array, ""]
) -> Int[Array, " N"]:
    """Returns each pixel's best among the first `num_classes` classes, the first of equals."""
    pixels = mask_probs.shape[0]
    start = jnp.full(pixels, -1.0, mask_probs.dtype), jnp.zeros(pixels, jnp.int32)
    class_probs = jnp.pad(class_probs, ((0, CLASS_BLOCKS[-1]), (0, 0)))  # the last block may end beyond the bucket

    def by_blocks(size: int) -> Int[Array, " N"]:
        def visit(index: Int[Array, ""], best: tuple[Float[Array, " N"], Int[Array, " N"]]) -> Any:
            block = lax.dynamic_slice_in_dim(class_probs, index * size, size, axis=0).T
            scores = jnp.matmul(mask_probs, block, precision=lax.Precision.HIGHEST)
            top = scores.max(axis=1)
            label = first_of_best(scores) + index * size
            return jnp.maximum(top, best[0]), jnp.where(top > best[0], label, best[1])

        return lax.fori_loop(0, ceil_div(num_classes, size), visit, start)[1]

    few = [num_classes <= size for size in CLASS_BLOCKS[:-1]]
    block = len(few) - jnp.asarray(few).sum(dtype=jnp.int32)  # the number of sizes that are too small
    return lax.switch(block, [functools.partial(by_blocks, size) for size in CLASS_BLOCKS])
