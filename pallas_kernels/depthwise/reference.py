"""The definition of the operator, in plain JAX: all implementations are judged by it."""

import jax
import jax.numpy as jnp
import numpy as np


def depthwise_norm(
    x: jax.Array,
    valid_hw: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    *,
    eps: float,
) -> jax.Array:
    """Computes `pallas_kernels.depthwise_norm`, in at least float32: one shifted product for each tap of the kernel."""
    dtype, (_, h, w, _) = np.promote_types(x.dtype, jnp.float32), x.shape
    size = weight.shape[0]
    half = size // 2
    inside = valid_cells(valid_hw, (h, w))[..., None]
    wide = jnp.where(inside, x, jnp.zeros_like(x)).astype(dtype)
    wide = jnp.pad(wide, ((0, 0), (half, half), (half, half), (0, 0)))
    weight, bias, scale, offset = (values.astype(dtype) for values in (weight, bias, scale, offset))
    total = jnp.broadcast_to(bias[None, None, None, :], x.shape)
    for i in range(size):
        for j in range(size):
            total += wide[:, i : i + h, j : j + w] * weight[i, j][None, None, None, :]
    centred = total - jnp.mean(total, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(variance + dtype.type(eps))
    return (normal * scale[None, None, None, :] + offset[None, None, None, :]).astype(x.dtype)


def valid_cells(valid_hw: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Returns whether each cell belongs to its image, [B, h, w]."""
    rows, columns = (jnp.arange(size, dtype=valid_hw.dtype) for size in shape)
    return (rows[None, :, None] < valid_hw[:, :1, None]) & (columns[None, None, :] < valid_hw[:, 1:, None])
