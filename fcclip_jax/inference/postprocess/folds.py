"""How every task passes over the output: tile by tile, with the tiles shared between the tasks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fcclip_jax.inference.resampling import Window, for_each_tile, resized_logits, resized_probs


class Tile(NamedTuple):
    """The masks of all queries at some pixels of the output. No mask holds the pixels outside the output."""

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
    """Whether mask probabilities are formed at the padded size and then resized, rather than formed of resized logits."""


def fold_tiles(
    folds: Mapping[str, Fold],
    logits: Float[Array, "h w Q"],
    image_hw: Int[Array, " 2"],
    output_hw: Int[Array, " 2"],
    canvas: tuple[int, int],
) -> dict[str, Any]:
    """Returns each task's result for one image. Folds that read the same tiles share one pass."""
    results = {}
    for before_resize, resized in ((False, resized_logits), (True, resized_probs)):
        sharing = {task: fold for task, fold in folds.items() if fold.before_resize == before_resize}
        if not sharing:
            continue

        def visit(
            states: dict[str, Any],
            window: Window,
            values: Float[Array, "R P Q"],
            sharing: Mapping[str, Fold] = sharing,
            before_resize: bool = before_resize,
        ) -> dict[str, Any]:
            if before_resize:
                tile = Tile(window, None, values)
            else:
                inside = jnp.where(window.inside[:, :, None], values, jnp.finfo(values.dtype).min)
                tile = Tile(window, inside, jax.nn.sigmoid(inside))
            return {task: fold.visit(states[task], tile) for task, fold in sharing.items()}

        start = {task: fold.start for task, fold in sharing.items()}
        end = for_each_tile(visit, start, output_hw, resized(logits, image_hw, output_hw, canvas))
        results |= {task: fold.finish(end[task]) for task, fold in sharing.items()}
    return results
