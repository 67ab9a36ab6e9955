"""Deformable attention on TPUs: Pallas (Mosaic) kernels, forward and hand-written backward, without gather or scatter.

TPUs have no fast gather, but bilinear sampling is a product with two sparse matrices, one for rows and one for columns:

    sample = sum over rows y, columns x of  hat(y - sample_y) hat(x - sample_x) value[y, x],    hat(t) = max(0, 1 - |t|)

A program takes one head and a block of queries. It multiplies a band of rows [band * D, w] by the column matrix [w, P * block] on
the MXU, weights the rows on the VPU and adds up; it visits only the rows that some point of its block touches, a range
that is computed beforehand and read from SMEM. So the result is exact however far a point lies, zeros outside come for
free, and the gradient of `value` is the transposed product, kept in VMEM while the blocks of queries pass. A kernel's cost
follows the rows it visits: `row_ranges` tells how many.

Numerics, `precision`: with "bfloat16" the MXU multiplies values and column weights of eight bits and sums in float32.
With "float32" results are those of float32 arithmetic: values are split into three bfloat16 terms, which hold all their
bits, and columns are *selected* on the MXU (ones and zeros are exact) and weighted on the VPU. That takes six products
where "bfloat16" takes one, and twelve for the gradients' three.

Known and not done, for want of a TPU to time it on: sorting the points of a block by row first, so that each row of lanes
visits a few rows only, would cut the products to a third or a quarter by count, at the price of a sort and of products too
small to fill the MXU's pipeline.

What ran: in interpret mode, everything, against the definition. What was only compiled, by the TPU compiler for v5e, v5p, v6e
and v7x: both kernels at full size (`python -m pallas_kernels.compile_tpu`). No TPU has run them; times are estimates.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

BLOCK = 128
"""Queries of a program: a row of lanes. Larger blocks touch more rows, smaller ones do not fill a tile."""

TILE = 16
"""Channels are padded to bfloat16's tile of sublanes, so that bands may begin at any row."""

BAND_ROWS = 256
"""Rows of the MXU product, band * D: enough to cover the time that loading the column matrix takes."""

VMEM = 48 * 2**20
"""What a kernel may take in all: three quarters of v7x's 64 MiB, less than half of the older generations' 128 MiB."""

Shapes = tuple[tuple[int, int], ...]


def unsupported(value: jax.Array, locations: jax.Array, shapes: Shapes) -> str | None:
    """One clause saying why the kernels cannot run these, or None."""
    if value.dtype not in (jnp.float32, jnp.bfloat16):
        return f"the TPU kernels take float32 or bfloat16, not {value.dtype}"
    needed = vmem_bytes(shapes, locations.shape[4], value.shape[3], exact=value.dtype == jnp.float32, backward=True)
    if needed > VMEM:
        return f"one head of all levels takes {needed / 2**20:.0f} MiB of VMEM, more than {VMEM // 2**20}"
    return None


def vmem_bytes(shapes: Shapes, points: int, channels: int, *, exact: bool, backward: bool) -> int:
    """An upper estimate: blocks twice (one is fetched while the other is used), and what a band computes."""
    levels, band = len(shapes), _band(channels)
    channels = _round_up(channels, TILE)
    terms = 3 if exact else 1
    pixels = sum((h + band - 1) * channels * _round_up(w, 128) for h, w in shapes)
    columns, band_rows = points * BLOCK, band * channels
    blocks = 2 * terms * pixels + 4 * BLOCK * (3 * _round_up(levels * points, 8) + channels)
    # Products of a band, with the factors of each, and the column matrices as numbers and as bfloat16.
    scratch = 4 * columns * (4 * band_rows + 4 * max(_round_up(w, 128) for _, w in shapes))
    if backward:
        blocks += 4 * pixels + 4 * BLOCK * 3 * _round_up(levels * points, 8)
        scratch *= 2
    return 2 * blocks + scratch


def row_ranges(y: jax.Array, shapes: Shapes, band: int) -> tuple[jax.Array, jax.Array]:
    """The first row that a block of queries touches, and how many bands reach the last: both [B, M, L, blocks].

    y: [B, M, L, P, blocks, BLOCK], in pixels. There are no bands where all points are above or below the level.
    """
    heights = jnp.asarray([h for h, _ in shapes], jnp.float32)[None, None, :, None]
    inside = (y > -1) & (y < heights[..., None, None])
    lowest = jnp.where(inside, y, jnp.inf).min(axis=(3, 5))
    highest = jnp.where(inside, y, -jnp.inf).max(axis=(3, 5))
    first = jnp.clip(jnp.floor(lowest), 0, heights - 1).astype(jnp.int32)
    last = jnp.clip(jnp.floor(highest) + 1, -1, heights - 1).astype(jnp.int32)
    return first, jnp.where(last < 0, 0, (last - first) // band + 1)


def forward(
    value: jax.Array,
    locations: jax.Array,
    weights: jax.Array,
    shapes: Shapes,
    *,
    precision: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """The weighted sums of samples, [B, Q, M, D]; arguments as in `pallas_kernels.ms_deform_attn`."""
    batch, queries, heads, channels = *weights.shape[:3], value.shape[3]
    if 0 in (batch, queries):
        return jnp.zeros((batch, queries, heads, channels), value.dtype)
    exact = _is_exact(value, precision)
    samples = _samples(locations, weights, shapes)
    out = pl.pallas_call(
        functools.partial(_forward_kernel, shapes=shapes),
        grid=(batch, heads, samples.shape[-1] // BLOCK),
        in_specs=_in_specs(shapes, samples, channels, exact),
        out_specs=_by_query(_round_up(channels, TILE)),
        out_shape=jax.ShapeDtypeStruct((batch, heads, _round_up(channels, TILE), samples.shape[-1]), jnp.float32),
        compiler_params=_compiler_params(vmem_bytes(shapes, weights.shape[4], channels, exact=exact, backward=False)),
        interpret=interpret,
        name="ms_deform_attn_forward",
    )(_ranges(samples, shapes, _band(channels)), samples, *_planes(value, shapes, exact))
    return out[:, :, :channels, :queries].transpose(0, 3, 1, 2).astype(value.dtype)


def backward(
    value: jax.Array,
    locations: jax.Array,
    weights: jax.Array,
    grad: jax.Array,
    shapes: Shapes,
    *,
    precision: str | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of value, locations and weights, given that of the output, `grad` [B, Q, M, D]."""
    batch, queries, heads, channels = *weights.shape[:3], value.shape[3]
    if 0 in (batch, queries):
        return jnp.zeros_like(value), jnp.zeros_like(locations), jnp.zeros_like(weights)
    exact = _is_exact(value, precision)
    samples, planes = _samples(locations, weights, shapes), _planes(value, shapes, exact)
    padded = samples.shape[-1]
    grad = _pad(grad.astype(jnp.float32), {1: padded, 3: _round_up(channels, TILE)}).transpose(0, 2, 3, 1)
    d_planes = [jax.ShapeDtypeStruct((batch, heads, *plane.shape[3:]), jnp.float32) for plane in planes]
    d_samples, *d_planes = pl.pallas_call(
        functools.partial(_backward_kernel, shapes=shapes, exact=exact),
        grid=(batch, heads, padded // BLOCK),
        in_specs=[*_in_specs(shapes, samples, channels, exact), _by_query(grad.shape[2])],
        out_specs=[_by_query(*samples.shape[2:4]), *(_whole(*plane.shape[2:]) for plane in d_planes)],
        out_shape=[jax.ShapeDtypeStruct(samples.shape, jnp.float32), *d_planes],
        compiler_params=_compiler_params(vmem_bytes(shapes, weights.shape[4], channels, exact=exact, backward=True)),
        interpret=interpret,
        name="ms_deform_attn_backward",
    )(_ranges(samples, shapes, _band(channels)), samples, *planes, grad)
    d_levels = [
        plane.reshape(batch, heads, -1, _round_up(channels, TILE), w)[:, :, :h, :channels].transpose(0, 2, 4, 1, 3)
        for plane, (h, w) in zip(d_planes, shapes, strict=True)
    ]
    d_value = jnp.concatenate([level.reshape(batch, -1, heads, channels) for level in d_levels], axis=1)
    d_samples = d_samples[..., :queries].reshape(batch, heads, 3, *weights.shape[3:], queries)
    d_samples = d_samples.transpose(0, 5, 1, 3, 4, 2)  # [B, Q, M, L, P, 3]
    d_locations = d_samples[..., :2] * _level_wh(shapes)
    return d_value.astype(value.dtype), d_locations.astype(locations.dtype), d_samples[..., 2].astype(weights.dtype)


def _is_exact(value: jax.Array, precision: str | None) -> bool:
    return (precision or value.dtype.name) == "float32"


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _band(channels: int) -> int:
    """Rows of a level that are visited together."""
    return max(BAND_ROWS // _round_up(channels, TILE), 1)


def _level_wh(shapes: Shapes) -> jax.Array:
    """[1, 1, 1, L, 1, 2], to go with locations."""
    return jnp.asarray([(w, h) for h, w in shapes], jnp.float32)[None, None, None, :, None, :]


def _pad(x: jax.Array, sizes: dict[int, int]) -> jax.Array:
    return jnp.pad(x, [(0, sizes.get(axis, size) - size) for axis, size in enumerate(x.shape)])


def _samples(locations: jax.Array, weights: jax.Array, shapes: Shapes) -> jax.Array:
    """[B, M, 3, L*P, Q rounded up to blocks]: x and y in pixels, in float32, and the weight. Queries are lanes."""
    batch, queries, heads, levels, points = weights.shape
    pixels = locations.astype(jnp.float32) * _level_wh(shapes) - 0.5
    # One column or row further out nothing is touched, and there numbers fit an integer.
    pixels = jnp.clip(pixels, -2, _level_wh(shapes) + 1)
    samples = jnp.concatenate([pixels, weights.astype(jnp.float32)[..., None]], axis=-1)
    samples = samples.transpose(0, 2, 5, 3, 4, 1).reshape(batch, heads, 3, levels * points, queries)
    surplus = _round_up(queries, BLOCK) - queries
    return jnp.pad(samples, ((0, 0), (0, 0), (0, 0), (0, 0), (0, surplus)), constant_values=-2)


def _ranges(samples: jax.Array, shapes: Shapes, band: int) -> jax.Array:
    """What `row_ranges` gives, as [B, M, 2, L, blocks]."""
    batch, heads, _, _, queries = samples.shape
    y = samples[:, :, 1].reshape(batch, heads, len(shapes), -1, queries // BLOCK, BLOCK)
    return jnp.stack(row_ranges(y, shapes, band), axis=2)


def _planes(value: jax.Array, shapes: Shapes, exact: bool) -> list[jax.Array]:
    """Every level as [B, M, terms, rows * D, w], of bfloat16 terms that add up to it, with rows for a band that overhangs."""
    batch, _, heads, channels = value.shape
    terms = _split(value.astype(jnp.float32)) if exact else [value.astype(jnp.bfloat16)]
    planes, start = [], 0
    for h, w in shapes:
        level = jnp.stack([term[:, start : start + h * w] for term in terms], axis=1)
        level = level.reshape(batch, len(terms), h, w, heads, channels).transpose(0, 4, 1, 2, 5, 3)
        level = _pad(level, {3: h + _band(channels) - 1, 4: _round_up(channels, TILE)})
        planes.append(level.reshape(batch, heads, len(terms), -1, w))
        start += h * w
    return planes


def _split(x: jax.Array) -> list[jax.Array]:
    """Three bfloat16 terms, eight bits each of float32's 24."""
    terms = []
    for _ in range(3):
        # Not a cast there and back: XLA is free to leave both out.
        term = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        terms.append(term.astype(jnp.bfloat16))
        x = x - term
    return terms


def _whole(*shape: int) -> pl.BlockSpec:
    """All that an image and head has, fetched once for all blocks of queries."""
    return pl.BlockSpec((None, None, *shape), lambda image, head, block: (image, head, *_zeros(shape)))


def _by_query(*shape: int) -> pl.BlockSpec:
    """What a block of queries has; queries come last."""
    return pl.BlockSpec((None, None, *shape, BLOCK), lambda image, head, block: (image, head, *_zeros(shape), block))


def _zeros(shape: tuple[int, ...]) -> list[np.int32]:
    """Block indices of 32 bits: with jax_enable_x64 plain zeros have 64, which Mosaic does not take."""
    return [np.int32(0) for _ in shape]


def _in_specs(shapes: Shapes, samples: jax.Array, channels: int, exact: bool) -> list[pl.BlockSpec]:
    ranges = _whole(2, len(shapes), samples.shape[-1] // BLOCK)
    ranges = pl.BlockSpec(ranges.block_shape, ranges.index_map, memory_space=pltpu.SMEM)
    rows = [(h + _band(channels) - 1) * _round_up(channels, TILE) for h, _ in shapes]
    planes = [_whole(3 if exact else 1, r, w) for r, (_, w) in zip(rows, shapes, strict=True)]
    return [ranges, _by_query(*samples.shape[2:4]), *planes]


def _compiler_params(vmem: int) -> pltpu.CompilerParams:
    # Blocks of queries follow each other, for they share d_value; heads and images may go to different cores.
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=max(vmem, 16 * 2**20)
    )


def _read(samples_ref, level: int, points: int):
    """The level's points one after another, [1, P * BLOCK]: column and row of the left top neighbour, x and y from there,
    weight."""
    rows = range(level * points, (level + 1) * points)
    x, y, weight = (jnp.concatenate([samples_ref[kind, row : row + 1, :] for row in rows], axis=1) for kind in range(3))
    left, top = jnp.floor(x), jnp.floor(y)
    return left.astype(jnp.int32), top.astype(jnp.int32), x - left, y - top, weight


def _columns(left: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Whether a column is the left neighbour of each point, and the right one: [w, P * BLOCK]."""
    column = lax.broadcasted_iota(jnp.int32, (width, left.shape[1]), 0)
    return column == left, column == left + 1


def _shares(top: jax.Array, y: jax.Array, first: jax.Array, band: int) -> tuple[jax.Array, jax.Array]:
    """Every row's share in each point, and the slope of it by y: [band, P * BLOCK]."""
    row = first + lax.broadcasted_iota(jnp.int32, (band, top.shape[1]), 0)
    above, below = (row == top).astype(jnp.float32), (row == top + 1).astype(jnp.float32)
    return above * (1 - y) + below * y, below - above


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int] = (1, 0), precision=None) -> jax.Array:
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _take(plane_ref, rows, columns: jax.Array) -> jax.Array:
    """Rows of a level times a column matrix, [band * D, P * BLOCK], all terms added up from the smallest."""
    terms = [_dot(plane_ref[term, rows, :], columns) for term in range(plane_ref.shape[0])]
    return functools.reduce(lambda total, term: total + term, reversed(terms))


def _forward_kernel(ranges_ref, samples_ref, *refs, shapes: Shapes):
    *plane_refs, out_ref = refs
    points = samples_ref.shape[1] // len(shapes)
    out = jnp.zeros((out_ref.shape[0], points * BLOCK), jnp.float32)
    for level, ((_, w), plane_ref) in enumerate(zip(shapes, plane_refs, strict=True)):
        out += _sample_level(ranges_ref, samples_ref, plane_ref, level, w, out.shape)
    out_ref[...] = functools.reduce(jnp.add, [out[:, p * BLOCK : (p + 1) * BLOCK] for p in range(points)])


def _sample_level(ranges_ref, samples_ref, plane_ref, level: int, width: int, shape: tuple[int, int]) -> jax.Array:
    """One level's part of the result, by point: [D, P * BLOCK]."""
    channels, block = shape[0], pl.program_id(2)
    band = _band(channels)
    left, top, x, y, weight = _read(samples_ref, level, shape[1] // BLOCK)
    is_left, is_right = _columns(left, width)
    if plane_ref.shape[0] == 1:
        share = jnp.where(is_left, 1 - x, jnp.where(is_right, x, 0))
        matrices, scales = [share.astype(jnp.bfloat16)], [weight]
    else:
        matrices = [is_left.astype(jnp.bfloat16), is_right.astype(jnp.bfloat16)]
        scales = [(1 - x) * weight, x * weight]
    first = ranges_ref[0, level, block]

    def add_band(step, totals):
        row = first + step * band
        shares, _ = _shares(top, y, row, band)
        rows = pl.ds(pl.multiple_of(row * channels, TILE), band * channels)
        taken = [_take(plane_ref, rows, matrix) for matrix in matrices]
        for r in range(band):
            own = slice(r * channels, (r + 1) * channels)
            totals = [total + part[own] * shares[r : r + 1] for total, part in zip(totals, taken, strict=True)]
        return totals

    totals = [jnp.zeros(shape, jnp.float32) for _ in matrices]
    totals = lax.fori_loop(0, ranges_ref[1, level, block], add_band, totals)
    return functools.reduce(jnp.add, [total * scale for total, scale in zip(totals, scales, strict=True)])


def _backward_kernel(ranges_ref, samples_ref, *refs, shapes: Shapes, exact: bool):
    levels = len(shapes)
    plane_refs, (grad_ref, d_samples_ref), d_plane_refs = refs[:levels], refs[levels : levels + 2], refs[levels + 2 :]
    points = samples_ref.shape[1] // levels
    grad = jnp.concatenate([grad_ref[...]] * points, axis=1)  # [D, P * BLOCK]

    @pl.when(pl.program_id(2) == 0)
    def _():
        for d_plane_ref in d_plane_refs:
            d_plane_ref[...] = jnp.zeros_like(d_plane_ref)

    for level, ((_, w), plane_ref, d_plane_ref) in enumerate(zip(shapes, plane_refs, d_plane_refs, strict=True)):
        slopes = _differentiate_level(ranges_ref, samples_ref, plane_ref, d_plane_ref, grad, level, w, exact)
        for kind, slope in enumerate(slopes):
            for p in range(points):
                row = level * points + p
                d_samples_ref[kind, row : row + 1, :] = slope[:, p * BLOCK : (p + 1) * BLOCK]


def _differentiate_level(
    ranges_ref, samples_ref, plane_ref, d_plane_ref, grad: jax.Array, level: int, width: int, exact: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adds to one level's `d_plane_ref`; returns the slopes by x and y (in pixels) and weight, [1, P * BLOCK] each."""
    channels, block = grad.shape[0], pl.program_id(2)
    band = _band(channels)
    left, top, x, y, weight = _read(samples_ref, level, grad.shape[1] // BLOCK)
    is_left, is_right = _columns(left, width)
    share = jnp.where(is_left, 1 - x, jnp.where(is_right, x, 0)) * weight
    share = share if exact else share.astype(jnp.bfloat16)
    is_left, is_right = is_left.astype(jnp.bfloat16), is_right.astype(jnp.bfloat16)
    first = ranges_ref[0, level, block]

    def add_band(step, slopes):
        row = first + step * band
        shares, y_slopes = _shares(top, y, row, band)
        rows = pl.ds(pl.multiple_of(row * channels, TILE), band * channels)
        at_left, at_right = _take(plane_ref, rows, is_left), _take(plane_ref, rows, is_right)
        d_x, d_y, d_weight = slopes
        d_rows = []
        for r in range(band):
            own = slice(r * channels, (r + 1) * channels)
            # How much the result would change with the share of this row's left and right neighbour.
            by_left = jnp.sum(at_left[own] * grad, axis=0, keepdims=True)
            by_right = jnp.sum(at_right[own] * grad, axis=0, keepdims=True)
            by_row = (1 - x) * by_left + x * by_right
            d_weight += shares[r : r + 1] * by_row
            d_y += y_slopes[r : r + 1] * by_row
            d_x += shares[r : r + 1] * (by_right - by_left)
            d_rows.append(shares[r : r + 1] * grad)
        d_rows = jnp.concatenate(d_rows, axis=0).astype(share.dtype)
        d_plane_ref[rows, :] += _dot(d_rows, share, (1, 1), lax.Precision.HIGHEST if exact else None)
        return d_x, d_y, d_weight

    nothing = jnp.zeros_like(x)
    d_x, d_y, d_weight = lax.fori_loop(0, ranges_ref[1, level, block], add_band, (nothing, nothing, nothing))
    return d_x * weight, d_y * weight, d_weight
