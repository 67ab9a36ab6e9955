"""Passes over the output tile by tile; all tasks share the tiles."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fcclip_jax.inference.resampling import Reader, Window, for_each_tile, resized_logits, resized_probs


class Tile(NamedTuple):
    """The masks of all queries at the pixels of one tile. Pixels beyond the output's edges are in no mask of resized logits."""

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


def fold_tiles(
    folds: Mapping[str, Fold],
    logits: Float[Array, "h w Q"],
    image_hw: Int[Array, " 2"],
    output_hw: Int[Array, " 2"],
    canvas: tuple[int, int],
) -> dict[str, Any]:
    """Returns each task's result for one image. Folds that read the same tiles share one pass."""
    results: dict[str, Any] = {}
    for before_resize, resized in ((False, resized_logits), (True, resized_probs)):
        sharing = {task: fold for task, fold in folds.items() if fold.before_resize == before_resize}
        if sharing:
            results |= _one_pass(sharing, resized(logits, image_hw, output_hw, canvas), output_hw, before_resize)
    return results


def _one_pass(
    folds: Mapping[str, Fold], reader: Reader, output_hw: Int[Array, " 2"], before_resize: bool
) -> dict[str, Any]:
    def visit(states: dict[str, Any], window: Window, values: Float[Array, "R P Q"]) -> dict[str, Any]:
        if before_resize:
            tile = Tile(window, None, values)
        else:
            inside = jnp.where(window.inside[:, :, None], values, jnp.finfo(values.dtype).min)
            tile = Tile(window, inside, jax.nn.sigmoid(inside))
        return {task: fold.visit(states[task], tile) for task, fold in folds.items()}

    end = for_each_tile(visit, {task: fold.start for task, fold in folds.items()}, output_hw, reader)
    return {task: fold.finish(end[task]) for task, fold in folds.items()}
