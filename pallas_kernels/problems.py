"""Problems to measure deformable attention on, their minimum costs, and the peak rates of devices."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

STRIDES = (32, 16, 8)
"""The strides of the pixel decoder's levels."""
MIB = 2**20


class Peak(NamedTuple):
    """A device's highest rates, per second."""

    memory_bytes: float
    bfloat16_flops: float
    float32_flops: float


# TPUs: cloud.google.com/tpu/docs/v5e, v5p, v6e and tpu7x; a TPU7x chip is two devices, so these are half of its rates.
# Their float32 peak is not published: a sixth of bfloat16's, since an exact float32 product is six bfloat16 products.
# GPUs: NVIDIA's data sheets, tensor cores without sparsity for bfloat16, plain cores for float32; a T4 has no bfloat16,
# so its float32 rate stands for both.
PEAKS = {
    "TPU v5 lite": Peak(819e9, 197e12, 197e12 / 6),
    "TPU v5": Peak(2765e9, 459e12, 459e12 / 6),
    "TPU v5p": Peak(2765e9, 459e12, 459e12 / 6),
    "TPU v6 lite": Peak(1638e9, 918e12, 918e12 / 6),
    "TPU7x": Peak(7380e9 / 2, 2307e12 / 2, 2307e12 / 2 / 6),
    "NVIDIA A100-SXM4-40GB": Peak(1555e9, 312e12, 19.5e12),
    "NVIDIA A100-SXM4-80GB": Peak(2039e9, 312e12, 19.5e12),
    "NVIDIA A100 80GB PCIe": Peak(1935e9, 312e12, 19.5e12),
    "NVIDIA H100 80GB HBM3": Peak(3350e9, 989e12, 67e12),
    "NVIDIA H100 PCIe": Peak(2000e9, 756e12, 51e12),
    "NVIDIA H200": Peak(4800e9, 989e12, 67e12),
    "NVIDIA L4": Peak(300e9, 121e12, 30.3e12),
    "Tesla T4": Peak(320e9, 8.1e12, 8.1e12),
}
"""By jax.Device.device_kind."""


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
