"""The operator by XLA's convolution: cuDNN's on NVIDIA GPUs, the compiler's own elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.depthwise.reference import valid_cells


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
    """Computes `pallas_kernels.depthwise_norm`. The convolution's result is in the dtype of `x`, statistics are in float32."""
    half = weight.shape[0] // 2
    inside = valid_cells(valid_hw, x.shape[1:3])[..., None]
    weight, bias, scale, offset = (values.astype(x.dtype) for values in (weight, bias, scale, offset))
    total = jax.lax.conv_general_dilated(
        jnp.where(inside, x, jnp.zeros_like(x)),
        weight[:, :, None, :],
        window_strides=(1, 1),
        padding=((half, half),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    wide = (total + bias[None, None, None, :]).astype(np.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normal = (centred * jax.lax.rsqrt(variance + eps)).astype(x.dtype)
    return normal * scale[None, None, None, :] + offset[None, None, None, :]
