"""Depthwise convolution, written for the platform that it runs on."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def depthwise_conv(x: Float[Array, "B h w C"], weight: Float[Array, "k k C"]) -> Float[Array, "B h w C"]:
    """Convolves every channel with its own odd k x k kernel; zeros outside, same size."""
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
    """XLA's CPU backend runs a depthwise convolution about ten times slower than this sum of shifted products."""
    size, (_, h, w, _) = weight.shape[0], x.shape
    half = size // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    total = jnp.zeros_like(x)
    for i in range(size):
        for j in range(size):
            total += padded[:, i : i + h, j : j + w] * weight[i, j][None, None, None, :]
    return total
