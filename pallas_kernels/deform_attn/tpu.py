"""Deformable attention on TPUs: Pallas (Mosaic) kernels, forward and hand-written backward, without gather or scatter.

TPUs have no fast gather, but bilinear sampling is a product with two sparse matrices, one for rows and one for columns:

    sample = sum over rows y, columns x of  hat(y - sample_y) hat(x - sample_x) value[y, x],    hat(t) = max(0, 1 - |t|)

A program takes one head and a block of queries. It multiplies a band of rows [band * D, w] by the column matrix
[w, P * block] on the MXU, weights the rows on the VPU and adds up. It visits only the rows that some point of its block
touches, a range that is computed before and read from SMEM. So the result is exact however far away a point is, zeros
outside cost nothing, and the gradient of `value` is the transposed product, kept in VMEM from one block of queries to
the next. A kernel's cost is proportional to the rows that it visits, which `tpu_layout.row_ranges` computes.

Numerics, `precision`: with "bfloat16" the MXU multiplies values and column weights of eight bits and sums in float32.
With "float32" results are those of float32 arithmetic: values are split into three bfloat16 terms, which hold all their
bits, and columns are *selected* on the MXU (ones and zeros are exact) and weighted on the VPU. That takes six products
where "bfloat16" takes one, and twelve for the gradients' three.

Not tried, because no TPU was available to time it: sorting the points of a block by row first, so that each row of
lanes visits a few rows only. By count it cuts the products to a third or a quarter; it costs a sort, and products too
small to fill the MXU's pipeline.

Tested in interpret mode against the definition. Compiled, by the TPU compiler for v5e, v5p, v6e and v7x, at full size
(`python -m pallas_kernels.compile_tpu`). Not run on a TPU: times are estimates.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.deform_attn.tpu_layout import (
    BLOCK,
    TILE,
    Shapes,
    band_ranges,
    band_rows,
    lay_out_planes,
    lay_out_samples,
    level_wh,
    pad_to,
    round_up,
    vmem_bytes,
)

VMEM = 48 * 2**20
"""The most that a kernel may take: three quarters of v7x's 64 MiB, less than half of older generations' 128 MiB."""


def unsupported(value: jax.Array, locations: jax.Array, shapes: Shapes) -> str | None:
    """Returns the reason why the kernels cannot run these arrays, as one clause, or None if they can."""
    if value.dtype not in (jnp.float32, jnp.bfloat16):
        return f"the TPU kernels take float32 or bfloat16, not {value.dtype}"
    needed = vmem_bytes(shapes, locations.shape[4], value.shape[3], exact=value.dtype == jnp.float32, backward=True)
    if needed > VMEM:
        return f"one head of all levels takes {needed / 2**20:.0f} MiB of VMEM, more than {VMEM // 2**20}"
    return None


def forward(
    value: jax.Array,
    locations: jax.Array,
    weights: jax.Array,
    shapes: Shapes,
    *,
    precision: str | None = None,
    interpret: bool = False,
    vmem_limit: int | None = None,
) -> jax.Array:
    """Returns the weighted sums of samples, [B, Q, M, D]; arrays and precision as in `pallas_kernels.ms_deform_attn`.

    interpret: runs in Pallas' interpret mode, without a TPU.
    vmem_limit: bytes that the compiler may give a program; by default what `vmem_bytes` estimates.
    """
    batch, queries, heads, channels = *weights.shape[:3], value.shape[3]
    if 0 in (batch, queries):
        return jnp.zeros((batch, queries, heads, channels), value.dtype)
    exact = _is_exact(value, precision)
    vmem_limit = vmem_limit or _vmem_limit(shapes, weights.shape[4], channels, exact=exact, backward=False)
    samples = lay_out_samples(locations, weights, shapes)
    out = pl.pallas_call(
        functools.partial(_forward_kernel, shapes=shapes),
        grid=(batch, heads, samples.shape[-1] // BLOCK),
        in_specs=_in_specs(shapes, samples, channels, exact),
        out_specs=_by_query(round_up(channels, TILE)),
        out_shape=jax.ShapeDtypeStruct((batch, heads, round_up(channels, TILE), samples.shape[-1]), jnp.float32),
        compiler_params=_compiler_params(vmem_limit),
        interpret=interpret,
        name="ms_deform_attn_forward",
    )(band_ranges(samples, shapes, band_rows(channels)), samples, *lay_out_planes(value, shapes, exact))
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
    vmem_limit: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of value, locations and weights from the result's, `grad` [B, Q, M, D].

    Options are those of `forward`.
    """
    batch, queries, heads, channels = *weights.shape[:3], value.shape[3]
    if 0 in (batch, queries):
        return jnp.zeros_like(value), jnp.zeros_like(locations), jnp.zeros_like(weights)
    exact = _is_exact(value, precision)
    vmem_limit = vmem_limit or _vmem_limit(shapes, weights.shape[4], channels, exact=exact, backward=True)
    samples, planes = lay_out_samples(locations, weights, shapes), lay_out_planes(value, shapes, exact)
    padded = samples.shape[-1]
    grad = pad_to(grad.astype(jnp.float32), {1: padded, 3: round_up(channels, TILE)}).transpose(0, 2, 3, 1)
    d_planes = [jax.ShapeDtypeStruct((batch, heads, *plane.shape[3:]), jnp.float32) for plane in planes]
    d_samples, *d_planes = pl.pallas_call(
        functools.partial(_backward_kernel, shapes=shapes, exact=exact),
        grid=(batch, heads, padded // BLOCK),
        in_specs=[*_in_specs(shapes, samples, channels, exact), _by_query(grad.shape[2])],
        out_specs=[_by_query(*samples.shape[2:4]), *(_whole(*plane.shape[2:]) for plane in d_planes)],
        out_shape=[jax.ShapeDtypeStruct(samples.shape, jnp.float32), *d_planes],
        compiler_params=_compiler_params(vmem_limit),
        interpret=interpret,
        name="ms_deform_attn_backward",
    )(band_ranges(samples, shapes, band_rows(channels)), samples, *planes, grad)
    d_levels = [
        plane.reshape(batch, heads, -1, round_up(channels, TILE), w)[:, :, :h, :channels].transpose(0, 2, 4, 1, 3)
        for plane, (h, w) in zip(d_planes, shapes, strict=True)
    ]
    d_value = jnp.concatenate([level.reshape(batch, -1, heads, channels) for level in d_levels], axis=1)
    d_samples = d_samples[..., :queries].reshape(batch, heads, 3, *weights.shape[3:], queries)
    d_samples = d_samples.transpose(0, 5, 1, 3, 4, 2)  # [B, Q, M, L, P, 3]
    d_locations = d_samples[..., :2] * level_wh(shapes)
    return d_value.astype(value.dtype), d_locations.astype(locations.dtype), d_samples[..., 2].astype(weights.dtype)


def _is_exact(value: jax.Array, precision: str | None) -> bool:
    return (precision or value.dtype.name) == "float32"


def _whole(*shape: int) -> pl.BlockSpec:
    """A block of an image and head, fetched once for all blocks of queries."""
    return pl.BlockSpec((None, None, *shape), lambda image, head, block: (image, head, *_zeros(shape)))


def _by_query(*shape: int) -> pl.BlockSpec:
    """A block of an image, head and block of queries; queries come last."""
    return pl.BlockSpec((None, None, *shape, BLOCK), lambda image, head, block: (image, head, *_zeros(shape), block))


def _zeros(shape: tuple[int, ...]) -> list[np.int32]:
    """Zero block indices of 32 bits: with jax_enable_x64 plain zeros have 64, which Mosaic rejects."""
    return [np.int32(0) for _ in shape]


def _in_specs(shapes: Shapes, samples: jax.Array, channels: int, exact: bool) -> list[pl.BlockSpec]:
    ranges = _whole(2, len(shapes), samples.shape[-1] // BLOCK)
    ranges = pl.BlockSpec(ranges.block_shape, ranges.index_map, memory_space=pltpu.SMEM)
    rows = [(h + band_rows(channels) - 1) * round_up(channels, TILE) for h, _ in shapes]
    planes = [_whole(3 if exact else 1, r, w) for r, (_, w) in zip(rows, shapes, strict=True)]
    return [ranges, _by_query(*samples.shape[2:4]), *planes]


def _vmem_limit(shapes: Shapes, points: int, channels: int, *, exact: bool, backward: bool) -> int:
    return max(vmem_bytes(shapes, points, channels, exact=exact, backward=backward), 16 * 2**20)


def _compiler_params(vmem_limit: int) -> pltpu.CompilerParams:
    # Blocks of queries follow each other, since they share d_value; heads and images may go to different cores.
    return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=vmem_limit)


def _read(samples_ref, level: int, points: int):
    """Reads a level's points one after another, [1, P * BLOCK] each.

    Returns column and row of the left top neighbour, x and y from there, and the weight.
    """
    rows = range(level * points, (level + 1) * points)
    x, y, weight = (jnp.concatenate([samples_ref[kind, row : row + 1, :] for row in rows], axis=1) for kind in range(3))
    left, top = jnp.floor(x), jnp.floor(y)
    return left.astype(jnp.int32), top.astype(jnp.int32), x - left, y - top, weight


def _columns(left: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns whether a column is the left, and the right, neighbour of each point: [w, P * BLOCK] each."""
    column = lax.broadcasted_iota(jnp.int32, (width, left.shape[1]), 0)
    return column == left, column == left + 1


def _shares(top: jax.Array, y: jax.Array, first: jax.Array, band: int) -> tuple[jax.Array, jax.Array]:
    """Returns each row's share in each point, and that share's slope by y: [band, P * BLOCK] each."""
    row = first + lax.broadcasted_iota(jnp.int32, (band, top.shape[1]), 0)
    above, below = (row == top).astype(jnp.float32), (row == top + 1).astype(jnp.float32)
    return above * (1 - y) + below * y, below - above


def _dot(
    a: jax.Array, b: jax.Array, contract: tuple[int, int] = (1, 0), precision: lax.Precision = lax.Precision.DEFAULT
) -> jax.Array:
    """Multiplies; None would take the caller's `jax.default_matmul_precision`, which Mosaic rejects for bfloat16."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _take(plane_ref, rows, columns: jax.Array) -> jax.Array:
    """Multiplies rows of a level by a column matrix: [band * D, P * BLOCK], terms added up from the smallest."""
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
    """Returns one level's part of the result, by point: [D, P * BLOCK]."""
    channels, block = shape[0], pl.program_id(2)
    band = band_rows(channels)
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
    band = band_rows(channels)
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
        d_plane_ref[rows, :] += _dot(d_rows, share, (1, 1), lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT)
        return d_x, d_y, d_weight

    nothing = jnp.zeros_like(x)
    d_x, d_y, d_weight = lax.fori_loop(0, ranges_ref[1, level, block], add_band, (nothing, nothing, nothing))
    return d_x * weight, d_y * weight, d_weight
