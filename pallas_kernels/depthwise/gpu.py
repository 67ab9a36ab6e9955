"""The operator on NVIDIA GPUs: one Pallas kernel through Triton that reads `x` once and writes the result once.

A program computes COLUMNS neighbouring cells of a row with all their channels, so that it can normalise them. Each
thread keeps its channels' sums of all these cells in registers, and walks over the rows of the window. A row's cells
are loaded once each and used for all the sums that they belong to: (COLUMNS + 6) / COLUMNS loads a cell and row
instead of 7. The weights of a row are loaded once and used for COLUMNS cells.

Triton's arrays have powers of two as sizes: 192 channels take 256 lanes, and a quarter of the arithmetic is idle.
Idle lanes load and store nothing.

Tested against the definition in interpret mode, and compiled to machine code for sm_80 and sm_90 by
`python -m pallas_kernels.compile_gpu`. Not run on a GPU: COLUMNS and the number of warps were chosen by counts.

deform_attn/gpu.py says what is known of the future of Pallas' Triton back end. Nothing here needs indexing by arrays:
Mosaic GPU can express all of it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

try:
    from jax.experimental.pallas import triton as plgpu
except ImportError:  # Not every platform's jaxlib has Triton, and later versions remove it.
    plgpu = None

# Cells of a program, a power of two. With 8, loads take as long as arithmetic; 16 cells need too many registers.
COLUMNS = 8
# Channels of a thread: 16 bytes of float32, the widest load.
CHANNELS = 4


def unsupported(x: jax.Array) -> str | None:
    """Returns the reason why the kernel cannot run this array, as one clause, or None if it can.

    Triton itself needs an Ampere GPU or newer.
    """
    batch, h, _, channels = x.shape
    if plgpu is None:
        return f"jax {jax.__version__} has no Triton back end for Pallas here"
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"the GPU kernel takes float32 or bfloat16, not {x.dtype}"
    if max(batch, h) > 65535:
        return f"a CUDA grid takes 65535 images and rows at most, not {batch} and {h}"
    if channels > 32 * 32 * CHANNELS:
        return f"a program takes {32 * 32 * CHANNELS} channels at most, not {channels}"
    if x.size >= 2**31:
        return "elements must be fewer than 2^31, to be counted in 32 bits"
    return None


def depthwise_norm(
    x: jax.Array,
    valid_hw: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    *,
    eps: float,
    interpret: bool = False,
) -> jax.Array:
    """Computes `pallas_kernels.depthwise_norm`, in float32.

    interpret: runs in Pallas' interpret mode, without a GPU.
    """
    batch, h, w, channels = x.shape
    lanes = pl.next_power_of_2(channels)
    return pl.pallas_call(
        functools.partial(_kernel, eps=eps, lanes=lanes),
        grid=(pl.cdiv(w, COLUMNS), h, batch),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        # Always explicit: the default back end for GPUs differs between versions of JAX.
        compiler_params=plgpu.CompilerParams(num_warps=max(lanes // (32 * CHANNELS), 1), num_stages=1),
        interpret=interpret,
        name="depthwise_norm",
    )(x, valid_hw, weight, bias, scale, offset)


def _kernel(x_ref, valid_ref, weight_ref, bias_ref, scale_ref, offset_ref, out_ref, *, eps, lanes):
    _, _, w, channels = x_ref.shape
    size = weight_ref.shape[0]
    first, row, image = pl.program_id(0) * COLUMNS, pl.program_id(1), pl.program_id(2)
    valid_h, valid_w = valid_ref[image, 0], valid_ref[image, 1]
    channel = jax.lax.iota(jnp.int32, lanes)
    real = channel < channels

    def add_row(i, totals):
        above = row + i - size // 2
        totals, inside_row = list(totals), (above >= 0) & (above < valid_h)
        weights = [_load(weight_ref.at[i, jnp.int32(j), channel], real) for j in range(size)]
        for c in range(COLUMNS + size - 1):
            column = first + c - size // 2
            inside = inside_row & (column >= 0) & (column < valid_w)
            cell = _load(x_ref.at[image, above, column, channel], real & inside)
            for j in range(max(0, c - COLUMNS + 1), min(size, c + 1)):
                totals[c - j] += cell * weights[j]
        return tuple(totals)

    totals = jax.lax.fori_loop(0, size, add_row, (_load(bias_ref.at[channel], real),) * COLUMNS)
    total = _side_by_side(totals)
    real = real[:, None]
    mean = jnp.sum(total, axis=0)[None, :] / channels
    centred = jnp.where(real, total - mean, 0.0)
    variance = jnp.sum(centred * centred, axis=0)[None, :] / channels
    scale, offset = (_load(ref.at[channel], channel < channels)[:, None] for ref in (scale_ref, offset_ref))
    result = (centred * jax.lax.rsqrt(variance + eps) * scale + offset).astype(out_ref.dtype)
    column = (first + jax.lax.iota(jnp.int32, COLUMNS))[None, :]
    plgpu.store(out_ref.at[image, row, column, channel[:, None]], result, mask=real & (column < w))


def _load(ref, mask):
    return plgpu.load(ref, mask=mask, other=0).astype(jnp.float32)


def _side_by_side(rows):
    """Stacks [lanes] arrays to [lanes, number of arrays], in pairs: Triton joins two at a time.

    One array is reduced over its lanes at once, where each array on its own would wait for all warps again.
    """
    if len(rows) == 1:
        return rows[0]
    pairs = jnp.stack([_side_by_side(rows[0::2]), _side_by_side(rows[1::2])], axis=-1)
    return pairs.reshape(pairs.shape[0], len(rows))
