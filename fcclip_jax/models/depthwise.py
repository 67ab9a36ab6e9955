"""Depthwise convolution, with one formulation for CPUs and one for accelerators."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fcclip_jax.conventions import ceil_div
from fcclip_jax.models.layers import wide_dtype

STRIPS = 4


def depthwise_conv(x: Float[Array, "B h w C"], weight: Float[Array, "k k C"]) -> Float[Array, "B h w C"]:
    """Convolves each channel with its own odd k x k kernel, zero-padded to the same size."""
    return jax.lax.platform_dependent(x, weight, cpu=_shifted_sum, default=_convolution)


def _convolution(x: Float[Array, "B h w C"], weight: Float[Array, "k k C"]) -> Float[Array, "B h w C"]:
    half = weight.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        weight[:, :, None, :],
        window_strides=(1, 1),
        padding=((half, half),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _shifted_sum(x: Float[Array, "B h w C"], weight: Float[Array, "k k C"]) -> Float[Array, "B h w C"]:
    """Sums shifted products. XLA's CPU backend takes about ten times as long for a depthwise convolution.

    The loop over strips ends the fusion: without it the compiler copies the whole sum into every reader of the result,
    and a layer norm has three (measured on ConvNeXt-L's blocks: 2 to 3 times the time, 3 times the compilation).
    """
    size, (batch, h, w, channels) = weight.shape[0], x.shape
    wide = wide_dtype(x)
    weight = weight.astype(wide)
    half, rows = size // 2, ceil_div(h, STRIPS)
    padded = jnp.pad(x, ((0, 0), (half, half + STRIPS * rows - h), (half, half), (0, 0)))

    def strip(index: Int[Array, ""]) -> Float[Array, "B rows w C"]:
        window = jax.lax.dynamic_slice_in_dim(padded, index * rows, rows + size - 1, axis=1)
        total = jnp.zeros((batch, rows, w, channels), wide)
        for i in range(size):
            for j in range(size):
                total += window[:, i : i + rows, j : j + w].astype(wide) * weight[i, j][None, None, None, :]
        return total.astype(x.dtype)

    strips = jax.lax.map(strip, jnp.arange(STRIPS, dtype=jnp.int32))
    return strips.swapaxes(0, 1).reshape(batch, STRIPS * rows, w, channels)[:, :h]
