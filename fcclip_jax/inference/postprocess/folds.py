"""Passes over the output tile by tile; all tasks share the tiles."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.inference.resampling import Reader, Window, for_each_tile, resized_logits, resized_probs


class Tile(NamedTuple):
    """The masks of the queries at the pixels of one tile. Values beyond the output's edges have no meaning."""

    window: Window
    logits: Float[Array, "R P Q"] | None
    """None if the probabilities were formed at the padded size."""
    probs: Float[Array, "R P Q"]


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
    def visit(states: dict[str, Any], window: Window, values: Float[Array, "R P Q"]) -> dict[str, Any]:
        tile = Tile(window, None, values) if before_resize else Tile(window, values, jax.nn.sigmoid(values))
        return {task: fold.visit(states[task], tile) for task, fold in folds.items()}

    end = for_each_tile(visit, {task: fold.start for task, fold in folds.items()}, output_hw, reader)
    return {task: fold.finish(end[task]) for task, fold in folds.items()}


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
