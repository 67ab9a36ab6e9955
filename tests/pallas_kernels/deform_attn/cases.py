"""Inputs that exercise every path of deformable attention."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # value, locations, weights, gradient of the result
    shapes: tuple[tuple[int, int], ...]

    def cast(self, dtype: str) -> "Case":
        return self._replace(arrays=tuple(np.asarray(x, jnp.dtype(dtype)) for x in self.arrays))

    def ambiguous(self) -> np.ndarray:
        """Returns whether float32 may put a point on either side of a kink, [B, Q, M, L, P, 2].

        On levels of 2^n pixels it cannot, since coordinates are exact.
        """
        level_wh = np.asarray([(w, h) for h, w in self.shapes], np.float64)[:, None, :]
        pixels = self.arrays[1].astype(np.float64) * level_wh - 0.5
        exact = np.log2(level_wh) % 1 == 0
        close = (np.abs(pixels - np.round(pixels)) < 1e-5 * level_wh) & ~exact
        return np.broadcast_to(close.any(axis=-1, keepdims=True), pixels.shape)


def random_case(
    shapes: tuple[tuple[int, int], ...],
    *,
    batch: int = 2,
    queries: int = 23,
    heads: int = 2,
    points: int = 4,
    channels: int = 32,
    sigma: float = 2.0,
    seed: int = 0,
) -> Case:
    """Draws queries anywhere, and points around them; `sigma` is in pixels of the sampled level."""
    rng = np.random.default_rng(seed)
    levels = len(shapes)
    level_wh = np.asarray([(w, h) for h, w in shapes])[:, None, :]
    centres = rng.random((batch, queries, 1, 1, 1, 2))
    locations = centres + sigma * rng.standard_normal((batch, queries, heads, levels, points, 2)) / level_wh
    return with_locations(locations, shapes, channels=channels, seed=seed)


def with_locations(locations: np.ndarray, shapes: tuple[tuple[int, int], ...], *, channels: int, seed: int) -> Case:
    rng = np.random.default_rng(seed + 1)
    batch, queries, heads = locations.shape[:3]
    pixels = sum(h * w for h, w in shapes)
    arrays = (
        rng.standard_normal((batch, pixels, heads, channels)),
        locations,
        rng.random(locations.shape[:-1]),
        rng.standard_normal((batch, queries, heads, channels)),
    )
    return Case(tuple(x.astype(np.float32) for x in arrays), shapes)


def points_on_lines(*, seed: int) -> Case:
    """Draws pixel coordinates in halves, inside and well outside: pixel centres, grid lines, borders."""
    rng = np.random.default_rng(seed)
    shapes = ((4, 8), (8, 2), (1, 4))
    level_wh = np.asarray([(w, h) for h, w in shapes])[:, None, :]
    pixels = rng.integers(-3, 2 * level_wh + 4, (2, 23, 2, 3, 4, 2)) / 2
    return with_locations((pixels + 0.5) / level_wh, shapes, channels=16, seed=seed)


def far_outside(*, seed: int) -> Case:
    """Draws some points near, and some so far away that an unclamped conversion to integers overflows."""
    case = random_case(PYRAMID, seed=seed)
    rng = np.random.default_rng(seed)
    far = rng.choice([0.0, 30.0, -1e3, 1e6, -1e9, 1e12], case.arrays[1].shape)
    return with_locations(case.arrays[1] + far, PYRAMID, channels=32, seed=seed)


PYRAMID = ((3, 5), (6, 9), (11, 18))

# The first three have one shape, so they are compiled once.
CASES = {
    "any sizes": random_case(PYRAMID),
    "no offsets": random_case(PYRAMID, sigma=0.0),
    "far outside": far_outside(seed=0),
    "some pixels around": random_case(((4, 4), (8, 4), (16, 8)), heads=8, queries=11),
    "on grid lines": points_on_lines(seed=0),
    "one-pixel levels": random_case(((1, 1), (1, 7), (5, 1)), sigma=1.0),
    "one of everything": random_case(((7, 6),), batch=1, queries=1, heads=1, points=1, channels=16),
    "four levels of eight points": random_case(((2, 3), *PYRAMID), queries=9, points=8, channels=64),
    "more than a block of queries": random_case(((20, 13),), batch=1, queries=261, heads=1, points=2, channels=24),
    "no batch": random_case(PYRAMID, batch=0),
    "no queries": random_case(PYRAMID, queries=0),
}


def by_numpy(case: Case) -> tuple[np.ndarray, ...]:
    """Computes the result and the gradients of value, locations and weights in float64; kinks are PyTorch's."""
    value, locations, weights, grad = (np.asarray(x, np.float64) for x in case.arrays)
    image, _, head = np.indices(weights.shape[:3])
    out, d_value, d_locations, d_weights = (np.zeros_like(x) for x in (grad, value, locations, weights))
    start = 0
    for level, (h, w) in enumerate(case.shapes):
        for point in range(weights.shape[4]):
            at = (slice(None), slice(None), slice(None), level, point)
            x, y = np.moveaxis(locations[at] * (w, h) - 0.5, -1, 0)
            for column, x_slope in ((np.floor(x), -1), (np.floor(x) + 1, 1)):
                for row, y_slope in ((np.floor(y), -1), (np.floor(y) + 1, 1)):
                    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
                    x_share, y_share = 1 - np.abs(x - column), 1 - np.abs(y - row)
                    pixel = start + (np.clip(row, 0, h - 1) * w + np.clip(column, 0, w - 1)).astype(int)
                    share, weight = np.where(inside, x_share * y_share, 0), weights[at]
                    corner = value[image, pixel, head]
                    out += (share * weight)[..., None] * corner
                    np.add.at(d_value, (image, pixel, head), (share * weight)[..., None] * grad)
                    gain = np.where(inside, (corner * grad).sum(axis=-1), 0)
                    d_weights[at] += share * gain
                    d_locations[at] += (
                        np.stack([x_slope * y_share * w, y_slope * x_share * h], -1) * (gain * weight)[..., None]
                    )
        start += h * w
    return out, d_value, d_locations, d_weights


def grid_sample(case: Case) -> tuple[np.ndarray, ...]:
    """Computes the result and the gradients of value, locations and weights by PyTorch's `grid_sample`, in float64."""
    import torch

    value, locations, weights, grad = (torch.tensor(x, dtype=torch.float64) for x in case.arrays)
    inputs = [x.requires_grad_() for x in (value, locations, weights)]
    batch, queries, heads = locations.shape[:3]
    out, start = 0, 0
    for level, (h, w) in enumerate(case.shapes):
        image = value[:, start : start + h * w].permute(0, 2, 3, 1).reshape(batch * heads, -1, h, w)
        start += h * w
        points = locations[:, :, :, level].transpose(1, 2).flatten(0, 1) * 2 - 1
        sampled = torch.nn.functional.grid_sample(image, points, padding_mode="zeros", align_corners=False)
        sampled = sampled.reshape(batch, heads, -1, queries, locations.shape[4])
        out = out + torch.einsum("bmdqp,bqmp->bqmd", sampled, weights[:, :, :, level])
    out.backward(grad)
    return tuple(x.numpy() for x in (out.detach(), *(x.grad for x in inputs)))
