"""The one entry point of this package."""

from collections.abc import Sequence

import jax

from pallas_kernels import reference

IMPLEMENTATIONS = ("reference",)


def ms_deform_attn(
    value: jax.Array,
    locations: jax.Array,
    weights: jax.Array,
    shapes: Sequence[tuple[int, int]],
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Multi-scale deformable attention's sampling (Deformable DETR, equation 3): a weighted sum of bilinear samples.

    Args:
        value: [B, N, M, D], the feature maps of all levels flattened row by row and concatenated.
        locations: [B, Q, M, L, P, 2], sampling points as (x, y), where [0, 1] spans a level from edge to edge
            (`grid_sample` with align_corners=False); what lies outside reads as zero.
        weights: [B, Q, M, L, P].
        shapes: the (height, width) of each of the L levels.
        implementation: one of `IMPLEMENTATIONS`, or None for the best that works on the platform.

    Returns:
        [B, Q, M, D], in the dtype of `value`.

    Raises:
        ValueError: shapes or dtypes do not fit together, or the implementation is unknown.
    """
    shapes = tuple((int(h), int(w)) for h, w in shapes)
    _check(value, locations, weights, shapes)
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"unknown implementation {implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}, or None"
        )
    return reference.ms_deform_attn(value, locations, weights, shapes)


def _check(value: jax.Array, locations: jax.Array, weights: jax.Array, shapes: tuple[tuple[int, int], ...]) -> None:
    given = f"value {value.shape}, locations {locations.shape}, weights {weights.shape}, level shapes {shapes}"
    if value.ndim != 4 or locations.ndim != 6 or weights.ndim != 5:
        raise ValueError(f"expected value [B,N,M,D], locations [B,Q,M,L,P,2] and weights [B,Q,M,L,P], got {given}")
    if sum(h * w for h, w in shapes) != value.shape[1]:
        raise ValueError(f"the level shapes do not add up to the {value.shape[1]} rows of value: {given}")
    batch, _, heads, _ = value.shape
    expected = (batch, weights.shape[1], heads, len(shapes), weights.shape[4])
    if weights.shape != expected or locations.shape != (*expected, 2):
        raise ValueError(f"batch, queries, heads, levels and points differ: {given}")
    if not value.dtype == locations.dtype == weights.dtype:
        raise ValueError(
            f"dtypes differ: value {value.dtype}, locations {locations.dtype}, weights {weights.dtype}; cast them to one"
        )
