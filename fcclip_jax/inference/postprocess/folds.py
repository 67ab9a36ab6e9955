"""Passes over the output tile by tile; all tasks share the tiles."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.conventions import ceil_div
from fcclip_jax.inference.resampling import (
    Bounds,
    Reader,
    Strip,
    Window,
    for_each_tile,
    resized_logits,
    resized_probs,
)

BLOCK = 8
"""Queries that are computed together, where not all of them count."""


MANY = 3
"""If more than a third of the queries count, as in noise, computing all at once is faster than in blocks."""


class Masks(NamedTuple):
    """The masks of some queries at the pixels of one tile. Values outside the window have no meaning."""

    logits: Float[Array, "R P B"] | None
    """None if the probabilities were formed at the padded size."""
    probs: Float[Array, "R P B"]


class Tile(NamedTuple):
    """One tile of the output, for all queries of a fold."""

    window: Window
    bounds: Bounds | None
    """Of the logits; None if nothing is left out."""
    read: Callable[[Int[Array, " B"] | None], Masks]
    """Computes the masks of some queries; None is all."""


class Fold(NamedTuple):
    """One task's pass over the tiles of one image."""

    start: Any
    """The state before the first tile."""
    visit: Callable[[Any, Tile], Any]
    """(state, tile) → the next state."""
    finish: Callable[[Any], Any]
    """The last state → the task's result."""
    before_resize: bool = False
    """True forms mask probabilities at the padded size and then resizes them; False forms them from resized logits."""
    queries: Int[Array, " N"] | None = None
    """The queries that its tiles hold, in this order; None is all. Only for resized logits."""


def fold_tiles(
    folds: Mapping[str, Fold],
    logits: Float[Array, "h w Q"],
    image_hw: Int[Array, " 2"],
    output_hw: Int[Array, " 2"],
    canvas: tuple[int, int],
) -> dict[str, Any]:
    """Returns each task's result for one image. Folds of all queries that read the same tiles share one pass."""
    results: dict[str, Any] = {}
    for before_resize, resized in ((False, resized_logits), (True, resized_probs)):
        sharing = {
            task: fold for task, fold in folds.items() if fold.before_resize == before_resize and fold.queries is None
        }
        if sharing:
            results |= _one_pass(sharing, resized(logits, image_hw, output_hw, canvas), output_hw, before_resize)
    for task, fold in folds.items():
        if fold.queries is not None:
            reader = resized_logits(logits[:, :, fold.queries], image_hw, output_hw, canvas)
            results |= _one_pass({task: fold}, reader, output_hw, before_resize=False)
    return results


def _one_pass(
    folds: Mapping[str, Fold], reader: Reader, output_hw: Int[Array, " 2"], before_resize: bool
) -> dict[str, Any]:
    def visit(states: dict[str, Any], window: Window, strip: Strip) -> dict[str, Any]:
        def read(queries: Int[Array, " B"] | None) -> Masks:
            values = reader.tile(strip, window.column, queries)
            return Masks(None, values) if before_resize else Masks(values, jax.nn.sigmoid(values))

        bounds = reader.bounds(strip, window.column)
        if bounds is None:
            whole = read(None)  # once for all folds
            tile = Tile(window, None, lambda _: whole)
        else:
            tile = Tile(window, bounds, read)
        return {task: fold.visit(states[task], tile) for task, fold in folds.items()}

    end = for_each_tile(visit, {task: fold.start for task, fold in folds.items()}, output_hw, reader)
    return {task: fold.finish(end[task]) for task, fold in folds.items()}


def fold_blocks(
    visit: Callable[[Any, Int[Array, " B"], Masks], Any], state: Any, tile: Tile, counts: Bool[Array, " Q"]
) -> Any:
    """Folds `visit(state, queries, masks)` over blocks of the queries that count in a tile, in their order, or all queries.

    queries: numbers; Q and more for masks that are none, behind the others.
    """
    number = counts.shape[0]

    def visit_all() -> Any:
        return visit(state, jnp.arange(number, dtype=jnp.int32), tile.read(None))

    if tile.bounds is None:
        return visit_all()
    chosen, count = chosen_first(counts)

    def visit_chosen() -> Any:
        padded = jnp.pad(chosen, (0, BLOCK), constant_values=number)

        def visit_block(index: Int[Array, ""], state: Any) -> Any:
            queries = lax.dynamic_slice_in_dim(padded, index * BLOCK, BLOCK)
            return visit(state, queries, tile.read(queries))

        return lax.fori_loop(0, ceil_div(count, BLOCK), visit_block, state)

    return lax.cond(count * MANY > number, visit_all, visit_chosen)


def chosen_first(chosen: Bool[Array, " N"]) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    """Returns the numbers of the chosen ones in their order, N for all others behind them; and how many are chosen."""
    number = chosen.shape[0]
    return jnp.sort(jnp.where(chosen, jnp.arange(number, dtype=jnp.int32), number)), chosen.sum(dtype=jnp.int32)


def count_pixels(masks: Bool[Array, "R P Q"]) -> Int[Array, " Q"]:
    """Counts each mask's pixels in a tile. XLA's CPU backend sums float32 faster than int32; both are exact."""
    return masks.astype(jnp.float32).sum(axis=(0, 1)).astype(jnp.int32)


def first_of_best(values: Float[Array, "*N Q"]) -> Int[Array, "*N"]:
    """Returns what jnp.argmax returns along the last axis, but tells 0.0 from -0.0, in a fraction of its time on a CPU.

    Narrow integers halve the memory traffic of the second pass. Values are compared by their bits, because XLA's CPU
    backend would write out the maximum of floats once for each choice.
    """
    choices = values.shape[-1]
    dtype = np.min_scalar_type(-choices)  # a signed one
    positions = lax.broadcasted_iota(dtype, values.shape, values.ndim - 1)
    bits = functools.partial(lax.bitcast_convert_type, new_dtype=f"int{8 * values.dtype.itemsize}")
    is_best = bits(values) == bits(values.max(axis=-1))[..., None]
    return jnp.where(is_best, positions, np.asarray(choices - 1, dtype)).min(axis=-1).astype(jnp.int32)
