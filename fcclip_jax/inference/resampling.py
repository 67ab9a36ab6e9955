"""Mask logits at the pixels of the output map, a tile at a time.

The official code upsamples the logits by 4 to the padded size, crops the resized image and resizes it to the output;
both resizes are bilinear with align_corners=False and no antialiasing. Images of any size share one program: shapes
are those of a canvas, and the loops run over the tiles that the output needs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.conventions import MASK_STRIDE, STRIDE, ceil_div

TILE = 32, 128
"""Rows and columns of pixels. With fewer, XLA's CPU backend runs every operation on one core; with more, a tile exceeds
the caches."""

GPU_TILE = 128, 2048
"""Larger, because a GPU starts a dozen kernels for each tile, and has the memory: 250 masks of a tile take 250 MiB at most."""


CELLS = 64
"""Columns of logits in the part of a strip that tiles of some queries are made from: those of TILE's columns, if the image was
not enlarged more than 1.8 times."""

BOUND_MARGIN = 1e-5
"""More than the rounding of float32 adds to a bound, relative to it."""


class Taps(NamedTuple):
    """A filter along one axis: output i is the sum over k of weights[i, k] x input[min(start[i] + k, last)]."""

    start: Int[Array, " N"]
    weights: Float[Array, "N T"]
    last: Int[Array, ""]


class Bounds(NamedTuple):
    """Between these lie all logits of a tile, with a margin for rounding."""

    low: Float[Array, " Q"]
    high: Float[Array, " Q"]


class Strip(NamedTuple):
    """The first step of a row of tiles."""

    values: Any
    """The reader's own."""
    bounds: tuple[Float[Array, "w Q"], Float[Array, "w Q"]] | None
    """The lowest and the highest logits, over the strip's rows; None on accelerators, where nothing is left out."""


class Reader(NamedTuple):
    """Computes tiles in two steps; all tiles of one row share the first step."""

    shape: tuple[int, int]  # of a tile
    step: int | Int[Array, ""]  # columns of a tile that have values; the next tile begins after them
    strip: Callable[..., Strip]  # (the tiles' first row) → a strip
    bounds: Callable[..., Bounds | None]  # (strip, the tile's first column) → the bounds of its logits
    tile: Callable[..., Float[Array, "R P B"]]  # (strip, the tile's first column, queries; None is all) → a tile


class Window(NamedTuple):
    """The place of a tile in the output."""

    row: Int[Array, ""]
    column: Int[Array, ""]
    inside: Bool[Array, "R P"]
    """False for pixels beyond the output's edges, and for those of the next tile."""


def leaves_out() -> bool:
    """Returns whether queries and classes that cannot count in a tile are left out there.

    That makes a CPU several times as fast. An accelerator computes a large tile of all queries faster than it finds out.
    """
    return jax.default_backend() == "cpu"


def tile_shape(canvas: tuple[int, int]) -> tuple[int, int]:
    """Returns the tile for JAX's default platform; on other platforms it is correct but slower."""
    return gpu_tile(canvas) if jax.default_backend() == "gpu" else TILE


def gpu_tile(canvas: tuple[int, int]) -> tuple[int, int]:
    """Returns a tile of whole rows, if they are not longer than GPU_TILE's, or else of equal parts of them."""
    rows, columns = GPU_TILE
    return rows, ceil_div(canvas[1], ceil_div(canvas[1], columns))


def tiled_canvas(canvas: tuple[int, int]) -> tuple[int, int]:
    """Returns the canvas rounded up to whole tiles, with room for one that begins in the last column."""
    shape = tile_shape(canvas)
    height, width = (ceil_div(side, tile) * tile for side, tile in zip(canvas, shape, strict=True))
    return height, width + shape[1] * leaves_out()


def linear_taps(
    positions: Int[Array, " N"], size_in: Int[Array, ""], size_out: Int[Array, ""], dtype: Any
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """Returns each position's lower neighbour and the weight of the upper one.

    They are those of torch's bilinear resize with align_corners=False. The arithmetic is of integers until the last
    division, so that float32 places its samples where float64 does.
    """
    numerator = jnp.maximum((2 * positions + 1) * size_in - size_out, 0)
    lower = numerator // (2 * size_out)
    return lower, (numerator - lower * (2 * size_out)).astype(dtype) / (2 * size_out).astype(dtype)


def upsample_taps(positions: Int[Array, " N"], image: Int[Array, ""], dtype: Any) -> Taps:
    """Returns the filter from mask logits to pixels of the padded image."""
    size = ceil_div(image, STRIDE) * (STRIDE // MASK_STRIDE)
    start, upper = linear_taps(positions, size, size * MASK_STRIDE, dtype)
    return Taps(start, jnp.stack([1 - upper, upper], axis=1), size - 1)


def resize_taps(positions: Int[Array, " N"], image: Int[Array, ""], output: Int[Array, ""], dtype: Any) -> Taps:
    """Returns the filter from mask logits to pixels of the output: upsample, crop, resize.

    An output pixel reads two neighbouring pixels of the padded image, and these read at most three neighbouring
    logits: the composition is one filter of three taps.
    """
    lower, fraction = linear_taps(positions, image, output, dtype)
    near = upsample_taps(lower, image, dtype)
    far = upsample_taps(jnp.minimum(lower + 1, image - 1), image, dtype)
    low = jnp.pad(near.weights * (1 - fraction[:, None]), ((0, 0), (0, 1)))
    high = far.weights * fraction[:, None]
    shifted = (far.start > near.start)[:, None]
    high = jnp.where(shifted, jnp.pad(high, ((0, 0), (1, 0))), jnp.pad(high, ((0, 0), (0, 1))))
    return Taps(near.start, low + high, near.last)


def logits_in_view(
    logits: Float[Array, "h w Q"],
    image_hw: Int[Array, " 2"],
    view_hw: Int[Array, " 2"],
    grid: tuple[int, int],
    stride: int = STRIDE,
) -> Float[Array, "h2 w2 Q"]:
    """Returns logits at the cells of the same image at another size, interpolated bilinearly.

    image_hw, view_hw: the image's size for which the logits were computed, and its other size, both without padding.
    grid, stride: the number of cells in both axes, and their side in pixels.
    """
    dtype = working_dtype(logits)
    taps = []
    for axis, cells in enumerate(grid):
        positions = jnp.arange(cells, dtype=jnp.int32)
        inputs = image_hw[axis] * (stride // MASK_STRIDE)
        lower, upper = linear_taps(positions, inputs, view_hw[axis], dtype)
        last = ceil_div(image_hw[axis], STRIDE) * (STRIDE // MASK_STRIDE) - 1
        taps.append(Taps(lower, jnp.stack([1 - upper, upper], axis=1), last))
    first = jnp.int32(0)
    return mix_columns(mix_rows(logits, taps[0], first, grid[0]), taps[1], first, grid[1])


def mix_rows(logits: Float[Array, "h w Q"], taps: Taps, first: Int[Array, ""], count: int) -> Float[Array, "R w Q"]:
    """Applies outputs first .. first + count - 1 of a filter along the rows."""
    start = lax.dynamic_slice_in_dim(taps.start, first, count)
    weights = lax.dynamic_slice_in_dim(taps.weights, first, count)
    rows = [jnp.minimum(start + k, taps.last) for k in range(weights.shape[1])]
    mixed = (logits[row].astype(weights.dtype) * weights[:, k, None, None] for k, row in enumerate(rows))
    return functools.reduce(jnp.add, mixed)


def mix_columns(strip: Float[Array, "R w Q"], taps: Taps, first: Int[Array, ""], count: int) -> Float[Array, "R P Q"]:
    """Applies outputs first .. first + count - 1 of a filter along the columns."""
    start = lax.dynamic_slice_in_dim(taps.start, first, count)
    weights = lax.dynamic_slice_in_dim(taps.weights, first, count)
    columns = [jnp.minimum(start + k, taps.last) for k in range(weights.shape[1])]
    mixed = (strip[:, column] * weights[None, :, k, None] for k, column in enumerate(columns))
    return functools.reduce(jnp.add, mixed)


def working_dtype(logits: Float[Array, "..."]) -> Any:
    """Returns the dtype of all computations on these logits: at least float32."""
    return np.promote_types(logits.dtype, np.float32)


def resized_logits(
    logits: Float[Array, "h w Q"], image_hw: Int[Array, " 2"], output_hw: Int[Array, " 2"], canvas: tuple[int, int]
) -> Reader:
    """Returns a reader of logits, resized to the output."""
    dtype = working_dtype(logits)
    shape = tile_rows, tile_columns = tile_shape(canvas)
    rows, columns = (
        resize_taps(jnp.arange(size, dtype=jnp.int32), image_hw[axis], output_hw[axis], dtype)
        for axis, size in enumerate(tiled_canvas(canvas))
    )
    cells = logits.shape[1]
    step = _step(cells, tile_columns, image_hw[1], output_hw[1])

    def tile(strip: Strip, column: Int[Array, ""], queries: Int[Array, " B"] | None = None) -> Float[Array, "R P B"]:
        if queries is None:
            return mix_columns(strip.values, columns, column, tile_columns)
        first = jnp.minimum(columns.start[column], cells - min(CELLS, cells))
        part = lax.dynamic_slice_in_dim(strip.values, first, min(CELLS, cells), axis=1)
        # Cells beyond the part are of columns that have no values.
        last = jnp.minimum(columns.last - first, part.shape[1] - 1)
        moved = Taps(columns.start - first, columns.weights, last)
        return mix_columns(part.take(queries, axis=2, mode="clip"), moved, column, tile_columns)

    return Reader(
        shape,
        step,
        lambda row: _mixed_rows(logits, rows, row, tile_rows),
        lambda strip, column: _tile_bounds(strip, columns, column, step, output_hw[1], CELLS),
        tile,
    )


def resized_probs(
    logits: Float[Array, "h w Q"], image_hw: Int[Array, " 2"], output_hw: Int[Array, " 2"], canvas: tuple[int, int]
) -> Reader:
    """Returns a reader of mask probabilities that are formed at the padded size and then resized to the output.

    Class scores are linear in them, so they equal scores that are formed at the padded size and then resized. A tile holds all
    queries.
    """
    dtype = working_dtype(logits)
    shape = tile_rows, tile_columns = tile_shape(canvas)
    taps, fractions = [], []
    for axis, size in enumerate(tiled_canvas(canvas)):
        positions = jnp.arange(size, dtype=jnp.int32)
        lower, fraction = linear_taps(positions, image_hw[axis], output_hw[axis], dtype)
        neighbours = jnp.stack([lower, jnp.minimum(lower + 1, image_hw[axis] - 1)], axis=1)
        taps.append(upsample_taps(neighbours.reshape(-1), image_hw[axis], dtype))
        fractions.append(fraction)

    def strip(row: Int[Array, ""]) -> Strip:
        rows = _mixed_rows(logits, taps[0], 2 * row, 2 * tile_rows)
        down = lax.dynamic_slice_in_dim(fractions[0], row, tile_rows)
        return rows._replace(values=(rows.values, down))

    def tile(strip: Strip, column: Int[Array, ""], queries: None = None) -> Float[Array, "R P Q"]:
        rows, down = strip.values
        across = lax.dynamic_slice_in_dim(fractions[1], column, tile_columns)[None, :, None]
        probs = jax.nn.sigmoid(mix_columns(rows, taps[1], 2 * column, 2 * tile_columns))
        probs = probs.reshape(tile_rows, 2, tile_columns, 2, -1)
        probs = probs[:, :, :, 0] * (1 - across[:, None]) + probs[:, :, :, 1] * across[:, None]
        return probs[:, 0] * (1 - down[:, None, None]) + probs[:, 1] * down[:, None, None]

    return Reader(
        shape,
        tile_columns,
        strip,
        # Its tiles have all columns, which read any number of cells.
        lambda strip, column: _tile_bounds(strip, taps[1], 2 * column, 2 * tile_columns, 2 * output_hw[1], None),
        tile,
    )


def _step(cells: int, tile_columns: int, image: Int[Array, ""], output: Int[Array, ""]) -> int | Int[Array, ""]:
    """Returns how many of a tile's columns read no more than CELLS cells."""
    if not leaves_out() or cells <= CELLS:
        return tile_columns
    # A column reads the cells at its own place and up to three more.
    return jnp.clip((CELLS - 4) * MASK_STRIDE * output // image, 1, tile_columns)


def _mixed_rows(logits: Float[Array, "h w Q"], taps: Taps, first: Int[Array, ""], count: int) -> Strip:
    """Returns `mix_rows` with its bounds."""
    if not leaves_out():
        return Strip(mix_rows(logits, taps, first, count), None)
    # Row by row, which a CPU computes fifteen times as fast as all rows and then the bounds over them.
    start = lax.dynamic_slice_in_dim(taps.start, first, count)
    weights = lax.dynamic_slice_in_dim(taps.weights, first, count)
    cells, dtype = logits.shape[1:], weights.dtype

    def mix_row(
        bounds: tuple[Float[Array, "w Q"], Float[Array, "w Q"]], tap: tuple[Int[Array, ""], Float[Array, " T"]]
    ) -> tuple[tuple[Float[Array, "w Q"], Float[Array, "w Q"]], Float[Array, "w Q"]]:
        start, weights = tap
        mixed = (logits[jnp.minimum(start + k, taps.last)].astype(dtype) * weights[k] for k in range(weights.shape[0]))
        row = functools.reduce(jnp.add, mixed)
        return (jnp.minimum(bounds[0], row), jnp.maximum(bounds[1], row)), row

    none = jnp.full(cells, jnp.inf, dtype), jnp.full(cells, -jnp.inf, dtype)
    bounds, rows = lax.scan(mix_row, none, (start, weights))
    return Strip(rows, bounds)


def _tile_bounds(
    strip: Strip,
    columns: Taps,
    first: Int[Array, ""],
    count: int | Int[Array, ""],
    end: Int[Array, ""],
    most: int | None,
) -> Bounds | None:
    """Returns the bounds of the logits at `count` columns from `first` on, before `end`.

    most: the most cells that these columns read; None is any number.
    """
    if strip.bounds is None:
        return None
    cells = strip.bounds[0].shape[0]
    width = min(most or cells, cells)
    last_column = jnp.minimum(first + count, end) - 1
    first_cell = jnp.minimum(columns.start[first], columns.last)
    last_cell = jnp.minimum(columns.start[last_column] + columns.weights.shape[1] - 1, columns.last)
    start = jnp.minimum(first_cell, cells - width)
    lows, highs = (lax.dynamic_slice_in_dim(bound, start, width) for bound in strip.bounds)
    places = start + jnp.arange(width, dtype=jnp.int32)
    read = ((places >= first_cell) & (places <= last_cell))[:, None]
    low, high = jnp.where(read, lows, jnp.inf).min(axis=0), jnp.where(read, highs, -jnp.inf).max(axis=0)
    margin = BOUND_MARGIN * (1 + jnp.maximum(abs(low), abs(high)))
    return Bounds(low - margin, high + margin)


def for_each_tile(visit: Callable[..., Any], state: Any, output_hw: Int[Array, " 2"], reader: Reader) -> Any:
    """Folds `visit(state, window, strip)` over the tiles of the output, row by row; returns the last state."""
    tile_rows, tile_columns = reader.shape

    def visit_row(index: Int[Array, ""], state: Any) -> Any:
        row = index * tile_rows
        strip = reader.strip(row)
        rows_inside = row + jnp.arange(tile_rows, dtype=jnp.int32) < output_hw[0]

        def visit_tile(index: Int[Array, ""], state: Any) -> Any:
            column = index * reader.step
            columns = jnp.arange(tile_columns, dtype=jnp.int32)
            columns_inside = (column + columns < output_hw[1]) & (columns < reader.step)
            return visit(state, Window(row, column, rows_inside[:, None] & columns_inside[None, :]), strip)

        return lax.fori_loop(0, ceil_div(output_hw[1], reader.step), visit_tile, state)

    return lax.fori_loop(0, ceil_div(output_hw[0], tile_rows), visit_row, state)
