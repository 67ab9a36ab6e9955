"""Depthwise convolution, with one formulation for CPUs and one for accelerators."""

import functools
import operator
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
    one, ConvNeXt-L's blocks take a third to a sixth of the time. XLA must not see which branch runs: if the first weight is
    NaN, so is everything, as the layer norm would make of it anyway.
    """
    wide, size = wide_dtype(x), weight.shape[0]

    def sum_of_products(padded: Float[Array, "B h2 w2 C"]) -> Float[Array, "B h w C"]:
        total = 0.0
        for i, j, window in _windows(padded, size):
            total += window.astype(wide) * weight[i, j].astype(wide)[None, None, None, :]
        return total.astype(x.dtype)

    # The padding is no part of the branch: branches do not share the memory of their intermediate values.
    return jax.lax.cond(
        jnp.isnan(weight[0, 0, 0]), lambda _: jnp.full_like(x, jnp.nan), sum_of_products, _padded(x, size)
    )


def _padded(x: Float[Array, "B h w C"], size: int) -> Float[Array, "B h2 w2 C"]:
    half = size // 2
    return jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))


def _windows(padded: Float[Array, "B h2 w2 C"], size: int) -> Iterator[tuple[int, int, Float[Array, "B h w C"]]]:
    """Yields i, j and the input that each output multiplies by weight (i, j), for all of them."""
    h, w = (side - size + 1 for side in padded.shape[1:3])
    for i in range(size):
        for j in range(size):
            yield i, j, padded[:, i : i + h, j : j + w]


def _forward(x: Float[Array, "B h w C"], weight: Float[Array, "k k C"]):
    return _shifted_sum(x, weight), (x, weight)


def _backward(residuals: tuple[Float[Array, "B h w C"], Float[Array, "k k C"]], gradient: Float[Array, "B h w C"]):
    x, weight = residuals
    return _shifted_sum(gradient, weight[::-1, ::-1]), _gradient_of_weight(x, gradient, weight)


ROWS = 16
"""Rows whose products one expression adds. Fewer leave more partial sums; more take longer to compile."""


def _gradient_of_weight(
    x: Float[Array, "B h w C"], gradient: Float[Array, "B h w C"], weight: Float[Array, "k k C"]
) -> Float[Array, "k k C"]:
    """Sums input times gradient over all positions, for each tap.

    XLA's CPU backend computes a fused sum over positions one number at a time. Therefore rows are added in one
    expression, which it vectorises along w and C, and the few partial sums by a product with ones, which it does not
    fuse. That takes a fifth to a twentieth of the time at most of ConvNeXt's shapes, and no more
    at the smallest. The branch is the one of `_shifted_sum`:
    without it, the computation of the input would be copied into each tap.
    """
    height, width, channels = x.shape[1:]
    wide, size = wide_dtype(x), weight.shape[0]
    rows = min(ROWS, height)
    below = -height % rows  # rows of zeros, so that all groups are full
    height += below

    def sums_of_products(arrays: tuple[Float[Array, "B h2 w2 C"], Float[Array, "B h3 w C"]]) -> Float[Array, "k k C"]:
        padded, gradient = arrays
        ones = jnp.ones(gradient.size // (rows * channels), wide)

        def of_tap(i: int, j: int) -> Float[Array, " C"]:
            products = (
                padded[:, i + row : i + row + height : rows, j : j + width].astype(wide)
                * gradient[:, row::rows].astype(wide)
                for row in range(rows)
            )
            return ones @ functools.reduce(operator.add, products).reshape(-1, channels)

        taps = [of_tap(i, j) for i in range(size) for j in range(size)]
        return jnp.stack(taps).reshape(weight.shape).astype(weight.dtype)

    padded, gradient = (jnp.pad(array, ((0, 0), (0, below), (0, 0), (0, 0))) for array in (_padded(x, size), gradient))
    return jax.lax.cond(
        jnp.isnan(weight[0, 0, 0]), lambda _: jnp.full_like(weight, jnp.nan), sums_of_products, (padded, gradient)
    )


_shifted_sum.defvjp(_forward, _backward)
