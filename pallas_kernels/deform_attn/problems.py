"""Problems to measure deformable attention on, and their minimum costs."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

STRIDES = (32, 16, 8)
"""The strides of the pixel decoder's levels."""


class Problem(NamedTuple):
    """A pixel decoder's sampling: each token of each level is a query."""

    shapes: tuple[tuple[int, int], ...]
    """(height, width) of each level."""
    batch: int = 1
    heads: int = 8
    channels: int = 32
    points: int = 4
    dtype: str = "float32"

    @property
    def tokens(self) -> int:
        return sum(h * w for h, w in self.shapes)

    @property
    def samples(self) -> int:
        return self.batch * self.tokens * self.heads * len(self.shapes) * self.points


def level_shapes(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Returns the pixel decoder's levels for an image of (height, width)."""
    return tuple((-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES)


def least_bytes(problem: Problem, backward: bool) -> int:
    """Counts the bytes that must move between memory and device: inputs read once a pass, results written once.

    The backward pass reads the three inputs again, and the result's gradient; it writes three gradients.
    """
    value = out = problem.batch * problem.tokens * problem.heads * problem.channels
    inputs = value + 2 * problem.samples + problem.samples
    elements = inputs + out
    if backward:
        elements += inputs + out + inputs
    return elements * jnp.dtype(problem.dtype).itemsize


def least_flops(problem: Problem, backward: bool) -> int:
    """Counts the operations on channels: four neighbours a sample, a multiplication and an addition each.

    The backward pass does that twice: it multiplies each neighbour by the result's gradient, which gives the gradients
    of weight and location, and adds each neighbour's share to the value's gradient. Operations done once a sample, not
    once a channel, are left out, as are the zeros that a formulation by matrix products multiplies.
    """
    once = problem.samples * 4 * problem.channels * 2
    return once * 3 if backward else once


def random_arrays(problem: Problem, sigma: float) -> tuple[np.ndarray, ...]:
    """Draws value, locations, weights and the result's gradient, always the same.

    sigma: spread of the points around their query, in pixels of the level that they sample.
    """
    rng = np.random.default_rng(0)
    shapes, levels = problem.shapes, len(problem.shapes)
    value = rng.standard_normal((problem.batch, problem.tokens, problem.heads, problem.channels), np.float32)
    grad = rng.standard_normal(value.shape, np.float32)
    centres = [np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), axis=-1) for h, w in shapes]
    centres = np.concatenate([level.reshape(-1, 2) for level in centres])[None, :, None, None, None, :]
    sizes = np.asarray([(w, h) for h, w in shapes])[None, None, None, :, None, :]
    grid = (problem.batch, problem.tokens, problem.heads, levels, problem.points)
    locations = centres + sigma * rng.standard_normal((*grid, 2), np.float32) / sizes
    weights = rng.random(grid, np.float32)
    weights /= weights.sum(axis=(-1, -2), keepdims=True)
    return value, locations.astype(np.float32), weights, grad
