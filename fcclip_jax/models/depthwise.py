"""Depthwise convolution, with one formulation for CPUs and one for accelerators."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fcclip_jax.models.layers import wide_dtype


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


@jax.custom_vjp
def _shifted_sum(x: Float[Array, "B h w C"], weight: Float[Array, "k k C"]) -> Float[Array, "B h w C"]:
    """Sums shifted products. XLA's CPU backend takes about ten times as long for a depthwise convolution.

    The compiler copies the sum into every reader of the result, and a layer norm has three, unless it is a branch: with
    one, ConvNeXt-L's blocks take a third to a sixth of the time. XLA must not see which branch runs. A NaN among the
    weights becomes a NaN everywhere, as the layer norm would make of it anyway.
    """
    return jax.lax.cond(jnp.isnan(weight[0, 0, 0]), lambda x, _: jnp.full_like(x, jnp.nan), _sum_of_shifts, x, weight)


def _sum_of_shifts(x: Float[Array, "B h w C"], weight: Float[Array, "k k C"]) -> Float[Array, "B h w C"]:
    wide, total = wide_dtype(x), 0.0
    for i, j, window in _windows(x, weight.shape[0]):
        total += window.astype(wide) * weight[i, j].astype(wide)[None, None, None, :]
    return total.astype(x.dtype)


def _windows(x: Float[Array, "B h w C"], size: int) -> Iterator[tuple[int, int, Float[Array, "B h w C"]]]:
    """Yields i, j and the input that output (y, x) multiplies by weight (i, j), for all of them."""
    (_, h, w, _), half = x.shape, size // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    for i in range(size):
        for j in range(size):
            yield i, j, padded[:, i : i + h, j : j + w]


def _forward(x: Float[Array, "B h w C"], weight: Float[Array, "k k C"]):
    return _shifted_sum(x, weight), (x, weight)


def _backward(residuals: tuple[Float[Array, "B h w C"], Float[Array, "k k C"]], gradient: Float[Array, "B h w C"]):
    x, weight = residuals
    wide, size = wide_dtype(x), weight.shape[0]
    of_output = gradient.astype(wide)
    of_weight = [jnp.sum(window.astype(wide) * of_output, axis=(0, 1, 2)) for _, _, window in _windows(x, size)]
    of_weight = jnp.stack(of_weight).reshape(weight.shape).astype(weight.dtype)
    return _shifted_sum(gradient, weight[::-1, ::-1]), of_weight


_shifted_sum.defvjp(_forward, _backward)
