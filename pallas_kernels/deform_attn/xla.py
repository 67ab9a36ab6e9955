"""Deformable attention in plain JAX, forward and backward: for CPUs, and for platforms without a kernel.

Each level gets a border of one zero pixel, and points beyond it are moved to it, so all four neighbours of a point
exist and need no masks. Both directions go head by head, which bounds the memory. The backward pass stores the rows
that it gathers, and also goes block by block of queries: a block's rows stay in a CPU's cache. A scan over points
keeps the program small.

Chosen by measurement on a CPU (two cores, float32, the shapes of `pallas_kernels.bench`). Variants that were not
faster: scattering windows or packed rows of two or four neighbours, a precomputed table of shares, all points of a
block at once. Variants that were slower: the scan unrolled, all heads side by side, sums over channels as reductions
instead of a batched product.
"""

import jax
import jax.numpy as jnp
import numpy as np

# The fastest of 256 to 2048 in the backward pass. The forward pass stores no rows and is faster without blocks.
QUERIES_PER_BLOCK = 1024

# Neighbours are inside the bordered level by construction, so indices need no check.
IN_BOUNDS = "promise_in_bounds"

Shapes = tuple[tuple[int, int], ...]


def forward(value: jax.Array, locations: jax.Array, weights: jax.Array, shapes: Shapes) -> jax.Array:
    """Returns the weighted sums of samples, [B, Q, M, D]; arrays as in `pallas_kernels.ms_deform_attn`."""
    batch, queries, heads = weights.shape[:3]

    def one_head(arrays):
        value, places, weights = arrays
        planes = _bordered_levels(value, shapes)

        def add_point(total, point):
            for plane, place, weight, shape in zip(planes, *point, shapes, strict=True):
                first, x, y, _ = _neighbours(place, shape)
                # XLA fuses each gather with its product and sum: no gathered row is stored.
                for step, share in zip(_steps(shape), _shares(x, y), strict=True):
                    total += (share * weight)[:, None] * plane.at[first + step].get(mode=IN_BOUNDS)
            return total, None

        empty = jnp.zeros((queries, value.shape[-1]), value.dtype)
        return jax.lax.scan(add_point, empty, (places[0], weights[0]))[0][None]

    points = _points(locations, weights, shapes, blocks=1)
    out = jax.lax.map(one_head, (_heads_first(value), *points))
    return _join(out, batch, queries, heads).astype(value.dtype)


def backward(
    value: jax.Array, locations: jax.Array, weights: jax.Array, grad: jax.Array, shapes: Shapes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of value, locations and weights from the result's, `grad` [B, Q, M, D]."""
    batch, queries, heads = weights.shape[:3]

    def one_head(arrays):
        value, *arrays_by_block = arrays
        planes = _bordered_levels(value, shapes)

        def one_block(d_planes, arrays):
            places, weights, grad = arrays

            def add_point(d_planes, point):
                levels = zip(planes, d_planes, *point, shapes, strict=True)
                d_planes, d_places, d_weights = zip(*(_level_backward(*level, grad) for level in levels), strict=True)
                return d_planes, (jnp.stack(d_places), jnp.stack(d_weights))

            return jax.lax.scan(add_point, d_planes, (places, weights))

        empty = tuple(jnp.zeros_like(plane) for plane in planes)
        d_planes, d_points = jax.lax.scan(one_block, empty, tuple(arrays_by_block))
        d_levels = [_without_border(*d_plane) for d_plane in zip(d_planes, shapes, strict=True)]
        return jnp.concatenate(d_levels), *d_points

    blocks = max(1, -(-queries // QUERIES_PER_BLOCK))
    grad = _split(grad.astype(_accumulator(grad)), blocks)
    arrays = _heads_first(value), *_points(locations, weights, shapes, blocks), grad
    d_value, d_places, d_weights = jax.lax.map(one_head, arrays)
    d_value = d_value.reshape(batch, heads, *d_value.shape[1:]).transpose(0, 2, 1, 3)
    d_places = _join(d_places.transpose(0, 1, 5, 3, 2, 4), batch, queries, heads)
    d_locations = d_places * _widths_and_heights(shapes, d_places.dtype)
    d_weights = _join(d_weights.transpose(0, 1, 4, 3, 2), batch, queries, heads)
    return d_value.astype(value.dtype), d_locations.astype(locations.dtype), d_weights.astype(weights.dtype)


def _level_backward(
    plane: jax.Array, d_plane: jax.Array, place: jax.Array, weight: jax.Array, shape: tuple[int, int], grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Differentiates one point of each query in a block, on one level.

    Returns d_plane with the point's part added, and the gradients of place and weight.
    """
    first, x, y, inside = _neighbours(place, shape)
    steps, shares = _steps(shape), _shares(x, y)
    rows = plane.at[first[:, None] + jnp.asarray(steps, first.dtype)[None]].get(mode=IN_BOUNDS)
    # The loss's slope by each neighbour's share.
    slopes = jnp.einsum("qkd,qd->kq", rows, grad, precision=jax.lax.Precision.HIGHEST)
    left_top, right_top, left_bottom, right_bottom = slopes
    d_weight = sum(share * slope for share, slope in zip(shares, slopes, strict=True))
    d_x = (1 - y) * (right_top - left_top) + y * (right_bottom - left_bottom)
    d_y = (1 - x) * (left_bottom - left_top) + x * (right_bottom - right_top)
    d_place = jnp.stack([d_x, d_y]) * jnp.where(inside, weight, jnp.zeros_like(weight))[None]
    for step, share in zip(steps, shares, strict=True):
        d_plane = d_plane.at[first + step].add((share * weight)[:, None] * grad, mode=IN_BOUNDS)
    return d_plane, d_place, d_weight


def _neighbours(place: jax.Array, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns, for points (x, y) in pixels, [2, q]: the left top neighbour's row in the bordered level, the point's
    distance to its right and below it, and whether any neighbour is inside the level.

    A point beyond the border moves to the border's outer edge, where it still reads zero and adds nothing to the level.
    Only its own gradient differs, because the edge has a slope: the caller drops it where no neighbour is inside.
    """
    h, w = shape
    x, y = place
    inside = (x >= -1) & (x < w) & (y >= -1) & (y < h)
    x, y = jnp.clip(x, -1, w), jnp.clip(y, -1, h)
    left, top = jnp.minimum(jnp.floor(x), w - 1), jnp.minimum(jnp.floor(y), h - 1)
    first = (top.astype(jnp.int32) + 1) * (w + 2) + left.astype(jnp.int32) + 1
    return first, x - left, y - top, inside


def _steps(shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns each neighbour's rows after the left top one: left top, right top, left bottom, right bottom."""
    return 0, 1, shape[1] + 2, shape[1] + 3


def _shares(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the neighbours' bilinear weights, in the order of `_steps`."""
    return (1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y


def _points(locations: jax.Array, weights: jax.Array, shapes: Shapes, blocks: int) -> tuple[jax.Array, jax.Array]:
    """Returns points in pixels, [B M, blocks, P, L, 2, q], and their weights, [B M, blocks, P, L, q].

    Pixels are computed once, not for each neighbour: if XLA rounded one of these differently, a point next to a whole
    coordinate would be on one side of it for one neighbour and on the other side for the next.
    """
    accumulator = _accumulator(locations)
    places = locations.astype(accumulator) * _widths_and_heights(shapes, accumulator) - 0.5
    places, weights = _split(places, blocks), _split(weights.astype(accumulator), blocks)
    return places.transpose(0, 1, 4, 3, 5, 2), weights.transpose(0, 1, 4, 3, 2)


def _split(x: jax.Array, blocks: int) -> jax.Array:
    """Splits [B, Q, M, ...] into [B M, blocks, q, ...]. The last block is padded with zeros, which add nothing."""
    batch, queries, heads, *rest = x.shape
    size = -(-queries // blocks)
    x = jnp.pad(x, [(0, 0), (0, blocks * size - queries)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x, 2, 1).reshape(batch * heads, blocks, size, *rest)


def _join(x: jax.Array, batch: int, queries: int, heads: int) -> jax.Array:
    """Inverts `_split`."""
    _, blocks, size, *rest = x.shape
    return jnp.moveaxis(x.reshape(batch, heads, blocks * size, *rest)[:, :, :queries], 1, 2)


def _heads_first(value: jax.Array) -> jax.Array:
    """Transposes [B, N, M, D] to [B M, N, D], in the accumulator's dtype."""
    batch, count, heads, channels = value.shape
    return value.astype(_accumulator(value)).transpose(0, 2, 1, 3).reshape(batch * heads, count, channels)


def _bordered_levels(value: jax.Array, shapes: Shapes) -> tuple[jax.Array, ...]:
    """Splits [N, D] into levels with a border of zeros, [(h + 2) * (w + 2), D]."""
    planes = jnp.split(value, np.cumsum([h * w for h, w in shapes])[:-1])
    border = ((1, 1), (1, 1), (0, 0))
    planes = [jnp.pad(plane.reshape(*shape, -1), border) for plane, shape in zip(planes, shapes, strict=True)]
    return tuple(plane.reshape(-1, plane.shape[-1]) for plane in planes)


def _without_border(plane: jax.Array, shape: tuple[int, int]) -> jax.Array:
    h, w = shape
    return plane.reshape(h + 2, w + 2, -1)[1:-1, 1:-1].reshape(h * w, -1)


def _widths_and_heights(shapes: Shapes, dtype: np.dtype) -> jax.Array:
    return jnp.asarray([(w, h) for h, w in shapes], dtype)[None, None, None, :, None, :]


def _accumulator(x: jax.Array) -> np.dtype:
    return np.promote_types(x.dtype, jnp.float32)
