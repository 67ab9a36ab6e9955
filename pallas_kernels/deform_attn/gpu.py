"""Deformable attention on NVIDIA GPUs: Pallas kernels through Triton, forward and hand-written backward.

Bilinear sampling gathers four rows of `value` a sample. A program takes a tile of queries x channels of one head and
walks over the queries' samples, all levels in one loop: the code is small and builds in about half a second.
Locations and weights are laid out with queries last, so that neighbouring threads read neighbouring numbers.

The backward has two parts. The gradients of locations and weights gather as the forward does. The gradient of `value`
is

- by default scattered with float32 atomics: the order of the sums, and so their last digits, differ from run to run;
- with `deterministic=True` gathered: samples are sorted by the cell between four pixels that they lie in, and each
  pixel adds up the samples around it in that order. This costs a radix sort and ten 4-byte numbers a sample in memory
  (some 85 MB for one 1024x1024 image with 8 heads x 3 levels x 4 points), and a pixel that very many samples hit
  keeps one program busy. It may still be faster: Pallas' atomics are acquire-release, so in the machine code each waits
  for a memory fence and then empties the L1 cache.

Tested against the definition, in interpret mode and on an H100, where the forward and the backward with atomics were
timed (README.md). Compiled to machine code for sm_80, by `python -m pallas_kernels.compile_gpu`, but not run there.
Tiles and warps were chosen by registers, occupancy and coalescing; no others were tried.

Pallas' future: JAX 0.11 deprecated its Triton back end (0.12 still has it), to be removed in favour of Mosaic GPU, or
of Triton itself through jax_triton. Mosaic GPU in JAX 0.12 serves Ampere, Hopper and Blackwell, but loads, stores and
adds rectangular windows only: indexing by an array is not implemented. Moving to it changes the four kernel bodies
(rows fetched one by one or staged through shared memory, explicit layouts and barriers), `_accumulate`, `_call` and
compile_gpu.py; the layouts, the sort and the formulas stay. Moving to jax_triton rewrites the same bodies in Triton's
language, whose atomics can be relaxed.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

try:
    from jax.experimental.pallas import triton as plgpu
except ImportError:  # Not every platform's jaxlib has Triton, and later versions remove it.
    plgpu = None

# Elements of a program's tile of queries x channels. With 4 warps a thread gathers 8: many loads in flight hide their
# latency, in some 50 registers. The scatter takes half, so that more threads share the wait for its fences.
WARPS, GATHER_TILE, SCATTER_TILE = 4, 1024, 512
# Samples of a pixel that the deterministic value gradient reads at a time: 32 bytes of each sorted array, one sector.
RUN = 8

Shapes = tuple[tuple[int, int], ...]


def unsupported(value: jax.Array, locations: jax.Array, shapes: Shapes) -> str | None:
    """Returns the reason why the kernels cannot run these arrays, as one clause, or None if they can.

    Triton itself needs an Ampere GPU or newer.
    """
    batch, _, heads, _ = value.shape
    if plgpu is None:
        return f"jax {jax.__version__} has no Triton back end for Pallas here"
    if value.dtype not in (jnp.float32, jnp.bfloat16):
        return f"the GPU kernels take float32 or bfloat16, not {value.dtype}"
    if max(batch, heads) > 65535:
        return f"a CUDA grid takes 65535 images and heads at most, not {batch} and {heads}"
    if max(locations.size // 2, batch * heads * sum((h + 1) * (w + 1) for h, w in shapes)) >= 2**31:
        return "samples and pixels of a batch must be fewer than 2^31, to be counted in 32 bits"
    return None


def forward(
    value: jax.Array, locations: jax.Array, weights: jax.Array, shapes: Shapes, *, interpret: bool = False
) -> jax.Array:
    """Returns the weighted sums of samples, [B, Q, M, D]; arrays as in `pallas_kernels.ms_deform_attn`.

    interpret: runs in Pallas' interpret mode, without a GPU.
    """
    batch, _, heads, channels = value.shape
    queries = weights.shape[1]
    out = jax.ShapeDtypeStruct((batch, queries, heads, channels), value.dtype)
    if 0 in out.shape:
        return jnp.zeros(out.shape, out.dtype)
    kernel = functools.partial(_forward_kernel, shapes=shapes, block=_rows(GATHER_TILE, channels))
    return _call("forward", kernel, out, queries, value, interpret)(value, *_queries_last(locations, weights))


def backward(
    value: jax.Array,
    locations: jax.Array,
    weights: jax.Array,
    grad: jax.Array,
    shapes: Shapes,
    *,
    deterministic: bool = False,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of value, locations and weights from the result's, `grad` [B, Q, M, D]."""
    if 0 in grad.shape:
        return jnp.zeros_like(value), jnp.zeros_like(locations), jnp.zeros_like(weights)
    batch, queries, heads, levels, points, _ = locations.shape
    channels = value.shape[3]
    samples = _queries_last(locations, weights)
    kernel = functools.partial(_backward_kernel, shapes=shapes, block=_rows(GATHER_TILE, channels))
    d_samples = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in samples]
    d_locations, d_weights = _call("backward", kernel, d_samples, queries, value, interpret)(value, *samples, grad)
    d_locations = d_locations.reshape(batch, heads, levels, points, 2, queries).transpose(0, 5, 1, 2, 3, 4)
    d_weights = d_weights.reshape(batch, heads, levels, points, queries).transpose(0, 4, 1, 2, 3)
    if deterministic:
        kernel = functools.partial(_d_value_kernel, shapes=shapes, block=_rows(GATHER_TILE // RUN, channels))
        out = jax.ShapeDtypeStruct(value.shape, value.dtype)
        call = _call("d_value", kernel, out, value.shape[1], value, interpret)
        return call(*_sort_by_cell(*samples, shapes), grad), d_locations, d_weights
    kernel = functools.partial(_scatter_kernel, shapes=shapes, block=_rows(SCATTER_TILE, channels), interpret=interpret)
    zeros = jnp.zeros(value.shape, jnp.float32)
    out = jax.ShapeDtypeStruct(zeros.shape, zeros.dtype)
    d_value = _call("scatter", kernel, out, queries, value, interpret, {3: 0})(*samples, grad, zeros)
    return d_value.astype(value.dtype), d_locations, d_weights


def _rows(tile: int, channels: int) -> int:
    """Returns a tile's rows. Triton's tiles are powers of two: channels are rounded up, and the surplus is masked."""
    return max(tile // pl.next_power_of_2(channels), 1)


def _call(name, kernel, out_shape, rows, value, interpret, aliases=None):
    """A kernel for every tile of `rows` (queries or pixels), head and image; arrays come whole, as pointers."""
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(rows, kernel.keywords["block"]), value.shape[2], value.shape[0]),
        out_shape=out_shape,
        input_output_aliases=aliases or {},
        # Always explicit: the default back end for GPUs differs between versions of JAX.
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name=f"ms_deform_attn_{name}",
    )


def _queries_last(locations: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lays out locations as [B, M, L*P, 2, Q] and weights as [B, M, L*P, Q]."""
    batch, queries, heads, levels, points, _ = locations.shape
    return (
        locations.transpose(0, 2, 3, 4, 5, 1).reshape(batch, heads, levels * points, 2, queries),
        weights.transpose(0, 2, 3, 4, 1).reshape(batch, heads, levels * points, queries),
    )


def _starts(sizes) -> tuple[int, ...]:
    return tuple(itertools.accumulate(sizes, initial=0))[:-1]


def _pick(index, begins, *tables):
    """Returns each table's entry for the level that holds `index`; level l begins at begins[l]."""
    # Typed, because Pallas reads a bare number chosen by `where` as a boolean.
    picked = [jnp.full_like(index, table[0]) for table in tables]
    for level in range(1, len(begins)):
        here = index >= begins[level]
        picked = [jnp.where(here, np.int32(table[level]), x) for table, x in zip(tables, picked, strict=True)]
    return picked


def _pixel_coordinate(location, size):
    """Converts a location to float32 pixels, clamped where no pixel is touched, so that it fits an integer."""
    size = jnp.asarray(size, jnp.float32)
    return jnp.clip(location.astype(jnp.float32) * size - 0.5, -2, size + 1)


def _tile(rows: int, channels: int, block: int):
    """Returns this program's rows [block] and channels [1, D rounded up], and which of each exist."""
    row = pl.program_id(0) * block + jax.lax.iota(jnp.int32, block)
    channel = jax.lax.iota(jnp.int32, pl.next_power_of_2(channels))[None, :]
    return row, row < rows, channel, channel < channels


def _sample(locations_ref, weights_ref, at, query, exists, shapes):
    """Loads sample at[2] of each query: coordinates in pixels, weight, and its level's height, width and first row."""
    points = weights_ref.shape[2] // len(shapes)
    heights, widths = zip(*shapes, strict=True)
    starts = _starts(h * w for h, w in shapes)
    h, w, start = _pick(at[2], [level * points for level in range(len(shapes))], heights, widths, starts)
    x = _pixel_coordinate(plgpu.load(locations_ref.at[*at, 0, query], mask=exists, other=0), w)
    y = _pixel_coordinate(plgpu.load(locations_ref.at[*at, 1, query], mask=exists, other=0), h)
    return x, y, plgpu.load(weights_ref.at[*at, query], mask=exists, other=0).astype(jnp.float32), h, w, start


def _corners(x, y, h, w, start):
    """Yields the four pixels around each (x, y): row of value, inside or not, share, the share's slopes by x and y."""
    left, top = jnp.floor(x), jnp.floor(y)
    column, row = left.astype(jnp.int32), top.astype(jnp.int32)
    right_share, bottom_share = x - left, y - top
    for below, share_y, slope_y in ((0, 1 - bottom_share, -1), (1, bottom_share, 1)):
        for right, share_x, slope_x in ((0, 1 - right_share, -1), (1, right_share, 1)):
            inside = (column + right >= 0) & (column + right < w) & (row + below >= 0) & (row + below < h)
            pixel = start + (row + below) * w + column + right
            yield pixel, inside, share_x * share_y, slope_x * share_y, slope_y * share_x


def _forward_kernel(value_ref, locations_ref, weights_ref, out_ref, *, shapes, block):
    _, queries, _, channels = out_ref.shape
    head, image = pl.program_id(1), pl.program_id(2)
    query, exists, channel, real = _tile(queries, channels, block)

    def add_sample(i, total):
        x, y, weight, *level = _sample(locations_ref, weights_ref, (image, head, i), query, exists, shapes)
        for pixel, inside, share, _, _ in _corners(x, y, *level):
            mask = (inside & exists)[:, None] & real
            corner = plgpu.load(value_ref.at[image, pixel[:, None], head, channel], mask=mask, other=0)
            total += (weight * share)[:, None] * corner.astype(jnp.float32)
        return total

    total = jnp.zeros((block, channel.shape[1]), jnp.float32)
    total = jax.lax.fori_loop(0, weights_ref.shape[2], add_sample, total)
    mask = exists[:, None] & real
    plgpu.store(out_ref.at[image, query[:, None], head, channel], total.astype(out_ref.dtype), mask=mask)


def _backward_kernel(value_ref, locations_ref, weights_ref, grad_ref, d_locations_ref, d_weights_ref, *, shapes, block):
    """Computes the gradients of locations and weights."""
    _, queries, _, channels = grad_ref.shape
    head, image = pl.program_id(1), pl.program_id(2)
    query, exists, channel, real = _tile(queries, channels, block)
    grad = plgpu.load(grad_ref.at[image, query[:, None], head, channel], mask=exists[:, None] & real, other=0)
    grad, dtype = grad.astype(jnp.float32), d_weights_ref.dtype

    @pl.loop(0, weights_ref.shape[2])
    def _(i):
        at = image, head, i
        x, y, weight, h, w, start = _sample(locations_ref, weights_ref, at, query, exists, shapes)
        d_x = d_y = d_weight = jnp.zeros((block,), jnp.float32)
        for pixel, inside, share, slope_x, slope_y in _corners(x, y, h, w, start):
            mask = (inside & exists)[:, None] & real
            corner = plgpu.load(value_ref.at[image, pixel[:, None], head, channel], mask=mask, other=0)
            product = jnp.sum(corner.astype(jnp.float32) * grad, axis=1)
            d_weight += share * product
            d_x += slope_x * product
            d_y += slope_y * product
        d_x, d_y = d_x * weight * w.astype(jnp.float32), d_y * weight * h.astype(jnp.float32)
        plgpu.store(d_locations_ref.at[*at, 0, query], d_x.astype(dtype), mask=exists)
        plgpu.store(d_locations_ref.at[*at, 1, query], d_y.astype(dtype), mask=exists)
        plgpu.store(d_weights_ref.at[*at, query], d_weight.astype(dtype), mask=exists)


def _scatter_kernel(locations_ref, weights_ref, grad_ref, _, d_value_ref, *, shapes, block, interpret):
    """Adds the value gradient by atomics to the zeros that `d_value_ref` starts with."""
    _, queries, _, channels = grad_ref.shape
    head, image = pl.program_id(1), pl.program_id(2)
    query, exists, channel, real = _tile(queries, channels, block)
    grad = plgpu.load(grad_ref.at[image, query[:, None], head, channel], mask=exists[:, None] & real, other=0)
    grad = grad.astype(jnp.float32)

    @pl.loop(0, weights_ref.shape[2])
    def _(i):
        x, y, weight, *level = _sample(locations_ref, weights_ref, (image, head, i), query, exists, shapes)
        for pixel, inside, share, _, _ in _corners(x, y, *level):
            where = image, pixel[:, None], head, channel
            _accumulate(
                d_value_ref, where, (weight * share)[:, None] * grad, (inside & exists)[:, None] & real, interpret
            )


def _accumulate(ref, where, rows, mask, interpret):
    if interpret:
        # Interpret mode's atomic_add ignores masks, and of several rows for one pixel it keeps only one.
        jax.ref.addupdate(ref, where, jnp.where(mask, rows, 0))
    else:
        plgpu.atomic_add(ref, where, rows, mask=mask)


def _sort_by_cell(locations: jax.Array, weights: jax.Array, shapes: Shapes) -> list[jax.Array]:
    """Sorts the samples by cell: returns where each cell starts, and x, y, weight and query of each sample in order.

    A cell is the square between four neighbouring pixels. A level has one more cell than pixels along either axis, for
    samples half outside; samples wholly outside are sorted to the end.
    """
    batch, heads, samples, queries = weights.shape
    points = samples // len(shapes)
    begins = _starts((h + 1) * (w + 1) for h, w in shapes)
    cells = sum((h + 1) * (w + 1) for h, w in shapes)
    sample = jax.lax.iota(jnp.int32, samples)
    heights, widths = zip(*shapes, strict=True)
    h, w, begin = (
        x[None, None, :, None]
        for x in _pick(sample, [level * points for level in range(len(shapes))], heights, widths, begins)
    )
    x, y = _pixel_coordinate(locations[:, :, :, 0], w), _pixel_coordinate(locations[:, :, :, 1], h)
    column, row = jnp.floor(x).astype(jnp.int32) + 1, jnp.floor(y).astype(jnp.int32) + 1
    inside = (column >= 0) & (column <= w) & (row >= 0) & (row <= h)
    plane = jax.lax.iota(jnp.int32, batch * heads).reshape(batch, heads, 1, 1)
    key = jnp.where(inside, plane * cells + begin + row * (w + 1) + column, batch * heads * cells)
    # XLA uses CUB's radix sort for one flat array of unsigned 32-bit keys with one 32-bit payload.
    key = key.reshape(-1).astype(jnp.uint32)
    key, order = jax.lax.sort((key, jax.lax.iota(jnp.int32, key.size)), num_keys=1, is_stable=True)
    starts = jnp.searchsorted(key, jax.lax.iota(jnp.uint32, batch * heads * cells + 1))
    in_order = (t.reshape(-1)[order] for t in (x, y, weights))
    return [starts, *in_order, order % queries]


def _d_value_kernel(starts_ref, x_ref, y_ref, weight_ref, query_ref, grad_ref, d_value_ref, *, shapes, block):
    """Computes the value gradient of each pixel on its own, without atomics.

    The samples around a pixel lie in four cells, two above and two below. Two cells side by side are one run of the
    sorted order, so a pixel walks two runs, RUN samples at a time.
    """
    _, pixels, heads, channels = d_value_ref.shape
    head, image = pl.program_id(1), pl.program_id(2)
    pixel, exists, channel, real = _tile(pixels, channels, block)
    pixel_starts, cell_starts = _starts(h * w for h, w in shapes), _starts((h + 1) * (w + 1) for h, w in shapes)
    width, first, cell = _pick(pixel, pixel_starts, [w for _, w in shapes], pixel_starts, cell_starts)
    row = jax.lax.div(pixel - first, width)
    column = pixel - first - row * width
    cell += (image * heads + head) * sum((h + 1) * (w + 1) for h, w in shapes) + row * (width + 1) + column
    column, row = column.astype(jnp.float32)[:, None], row.astype(jnp.float32)[:, None]
    total = jnp.zeros((block, RUN, channel.shape[1]), jnp.float32)
    for first in (cell, cell + width + 1):
        begin = plgpu.load(starts_ref.at[first], mask=exists, other=0)
        end = plgpu.load(starts_ref.at[first + 2], mask=exists, other=0)

        def add_samples(i, total, begin=begin, end=end):
            at = (begin + i * RUN)[:, None] + jax.lax.iota(jnp.int32, RUN)[None, :]
            live = at < end[:, None]
            x, y, weight, query = (
                plgpu.load(ref.at[at], mask=live, other=0) for ref in (x_ref, y_ref, weight_ref, query_ref)
            )
            share = (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row)) * weight.astype(jnp.float32)
            where = image, query[:, :, None], head, channel[None]
            grad = plgpu.load(grad_ref.at[*where], mask=live[:, :, None] & real[None], other=0)
            return total + share[:, :, None] * grad.astype(jnp.float32)

        steps = jax.lax.div(jnp.max(end - begin) + (RUN - 1), np.int32(RUN))
        total = jax.lax.fori_loop(0, steps, add_samples, total)
    d_value = jnp.sum(total, axis=1).astype(d_value_ref.dtype)
    plgpu.store(d_value_ref.at[image, pixel[:, None], head, channel], d_value, mask=exists[:, None] & real)
