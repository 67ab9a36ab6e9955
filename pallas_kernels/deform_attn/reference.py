"""The definition of deformable attention, in plain JAX: all implementations are judged by it."""

import jax
import jax.numpy as jnp
import numpy as np


def ms_deform_attn(
    value: jax.Array, locations: jax.Array, weights: jax.Array, shapes: tuple[tuple[int, int], ...]
) -> jax.Array:
    """Computes `pallas_kernels.ms_deform_attn`, in at least float32. One head at a time bounds the memory."""
    accumulate = np.promote_types(value.dtype, jnp.float32)

    def one_head(head):
        value, *points = (x.astype(accumulate) for x in head)  # [N, D]; [P, Q, L, 2], [P, Q, L]

        def add_point(total, point):
            locations, weights = point
            start = 0
            for level, (h, w) in enumerate(shapes):
                plane = value[start : start + h * w]
                start += h * w
                x = locations[:, level, 0] * w - 0.5
                y = locations[:, level, 1] * h - 0.5
                total += weights[:, level][:, None] * _bilinear(plane, x, y, h, w)
            return total, None

        # A scan compiles one point's code instead of P copies, at the same speed.
        empty = jnp.zeros((points[0].shape[1], value.shape[-1]), accumulate)
        return jax.lax.scan(add_point, empty, tuple(points))[0]

    batch, pixels, heads, channels = value.shape
    _, queries, _, levels, points = weights.shape
    by_head = (
        value.transpose(0, 2, 1, 3).reshape(batch * heads, pixels, channels),
        locations.transpose(0, 2, 4, 1, 3, 5).reshape(batch * heads, points, queries, levels, 2),
        weights.transpose(0, 2, 4, 1, 3).reshape(batch * heads, points, queries, levels),
    )
    out = jax.lax.map(one_head, by_head)
    return out.reshape(batch, heads, queries, channels).transpose(0, 2, 1, 3).astype(value.dtype)


def backward(
    value: jax.Array, locations: jax.Array, weights: jax.Array, grad: jax.Array, shapes: tuple[tuple[int, int], ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of value, locations and weights from the result's, `grad` [B, Q, M, D], by `jax.vjp`."""
    return jax.vjp(lambda *arrays: ms_deform_attn(*arrays, shapes), value, locations, weights)[1](grad)


def _bilinear(plane: jax.Array, x: jax.Array, y: jax.Array, h: int, w: int) -> jax.Array:
    """Samples [h * w, D] at pixel coordinates (x, y), [Q] each; neighbours outside the plane count as zero.

    At a whole coordinate, where bilinear sampling has a kink, these weights have the derivatives of the interval that
    begins there, as PyTorch's `grid_sample` does.
    """
    left, top = jnp.floor(x), jnp.floor(y)
    right_share, bottom_share = x - left, y - top
    total = jnp.zeros((x.shape[0], plane.shape[-1]), plane.dtype)
    for row, row_weight in ((top, 1 - bottom_share), (top + 1, bottom_share)):
        for column, column_weight in ((left, 1 - right_share), (left + 1, right_share)):
            inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
            index = jnp.clip(row, 0, h - 1).astype(jnp.int32) * w + jnp.clip(column, 0, w - 1).astype(jnp.int32)
            weight = column_weight * row_weight
            total += jnp.where(inside, weight, jnp.zeros_like(weight))[:, None] * plane[index]
    return total
