"""Prints counted costs of the kernels, and the least time that each takes: `python -m pallas_kernels.roofline`.

These are the tables of README.md. Nothing is measured. Operations and bytes are those of the kernels at the pixel
decoder's shapes (8 heads of 32 channels, 4 points, levels of strides 32, 16 and 8, float32 or bfloat16 arrays), with
points spread around each query. A time is the larger of bytes over the memory's rate and operations over the
arithmetic's rate, as the makers publish them (`peaks.PEAKS`).
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.deform_attn.problems import Problem, least_bytes, least_flops, level_shapes, random_arrays
from pallas_kernels.deform_attn.tpu_layout import BLOCK, LANES, TILE, band_ranges, band_rows, lay_out_samples, round_up
from pallas_kernels.peaks import PEAKS

SIZES = ((512, 512), (800, 1344), (1024, 1024))
SIGMAS = (2.0, 4.0, 8.0)
TPUS = {"v5e": "TPU v5 lite", "v6e": "TPU v6 lite"}
GPUS = {"A100": "NVIDIA A100-SXM4-80GB", "H100": "NVIDIA H100 80GB HBM3"}


class Cost(NamedTuple):
    """Operations, and bytes that cross the memory's bus."""

    flops: float
    memory: float


def least(problem: Problem, backward: bool) -> Cost:
    """Returns the cost that no implementation can avoid."""
    return Cost(least_flops(problem, backward), least_bytes(problem, backward))


def visited_rows(problem: Problem, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns, by level, the rows that the TPU kernel multiplies, and all rows, summed over one image's programs."""
    locations = random_arrays(problem._replace(batch=1), sigma)[1]
    weights = jnp.zeros(locations.shape[:-1], jnp.float32)
    samples = lay_out_samples(jnp.asarray(locations), weights, problem.shapes)
    band = band_rows(problem.channels)
    bands = np.asarray(band_ranges(samples, problem.shapes, band))[0, :, 1]  # [M, L, blocks]
    heights = np.asarray([h for h, _ in problem.shapes])
    return band * bands.sum(axis=(0, 2)), heights * bands.shape[0] * bands.shape[2]


def on_tpu(problem: Problem, sigma: float, backward: bool) -> Cost:
    """Returns the MXU's operations, padding included, and the bytes that the kernel and the layouts around it move."""
    exact = problem.dtype == "float32"
    channels, columns = round_up(problem.channels, TILE), problem.points * BLOCK
    # Products a band: two selections of three terms, or one of shares; for the gradients, two selections and the
    # transposed product, which takes float32 six passes.
    products = (2 * 3 if exact else 1) + ((2 * 3 + 6 if exact else 3) if backward else 0)
    rows, _ = visited_rows(problem, sigma)
    widths = np.asarray([round_up(w, LANES) for _, w in problem.shapes])
    flops = 2 * products * problem.batch * columns * channels * (rows * widths).sum()

    planes = sum((h + band_rows(channels) - 1) * round_up(w, LANES) for h, w in problem.shapes)
    planes *= problem.batch * problem.heads * channels
    terms = planes * 2 * (3 if exact else 1)
    queries = problem.batch * problem.heads * round_up(problem.tokens, BLOCK)
    samples = queries * 4 * 3 * round_up(len(problem.shapes) * problem.points, 8)
    out = queries * 4 * channels
    inputs, result = _arrays(problem)
    # Inputs are read, converted to the kernel's layout, written, and read by the kernel; results are written and
    # converted back.
    memory = inputs + 2 * (terms + samples) + 2 * out + result
    if backward:
        memory += result + 2 * out + terms + samples + 2 * (4 * planes + samples) + inputs
    return Cost(flops, memory)


def on_gpu(problem: Problem, backward: bool) -> Cost:
    """Returns the cost with gathers served by caches, float32 atomics, and the layouts around the kernels."""
    element = jnp.dtype(problem.dtype).itemsize
    inputs, result = _arrays(problem)
    points = 3 * problem.samples * element
    flops = problem.samples * (8 * problem.channels + 45)
    memory = inputs + result + 2 * points
    if backward:
        value = result // element
        flops += problem.samples * (8 * problem.channels + 84 + 4 * problem.channels + 49)
        memory += inputs + result + 5 * points  # gradients of locations and weights, and their layouts
        memory += points + result + 8 * value + (0 if element == 4 else value * (4 + element))  # atomics
    return Cost(flops, memory)


def _arrays(problem: Problem) -> tuple[int, int]:
    """Returns the bytes of the inputs, and of the result, which is as large as its gradient."""
    element = jnp.dtype(problem.dtype).itemsize
    value = problem.batch * problem.tokens * problem.heads * problem.channels
    return (value + 3 * problem.samples) * element, value * element


def seconds(cost: Cost, device_kind: str, flops: str) -> float:
    """Returns the least time of a cost; `flops` is the field of `Peak` that bounds its arithmetic."""
    peak = PEAKS[device_kind]
    return max(cost.flops / getattr(peak, flops), cost.memory / peak.memory_bytes)


def print_visits() -> None:
    """Prints the share of rows that the TPU kernel visits, by image size and spread of the points."""
    print("| rows visited by the TPU kernel, of all | " + " | ".join(f"σ = {sigma:g} px" for sigma in SIGMAS) + " |")
    print("|---|" + "---|" * len(SIGMAS))
    for size in SIZES:
        problem = Problem(level_shapes(size))
        shares = []
        for sigma in SIGMAS:
            visited, rows = visited_rows(problem, sigma)
            levels = ", ".join(f"{share:.0%}" for share in visited / rows)
            shares.append(f"{visited.sum() / rows.sum():.0%} ({levels})")
        print(f"| {size[0]}x{size[1]} | " + " | ".join(shares) + " |")


def print_costs() -> None:
    """Prints operations, bytes and least times: forward pass / forward and backward pass."""
    devices = [*TPUS, *GPUS]
    print("| size, dtype | implementation | GFLOP | MB | " + " | ".join(f"{name}, µs" for name in devices) + " |")
    print("|---|---|---|---|" + "---|" * len(devices))
    for size in SIZES:
        for dtype in ("float32", "bfloat16"):
            problem = Problem(level_shapes(size), dtype=dtype)
            # The MXU's operations are bfloat16's, also for float32 arrays; GPUs gather with plain float32 arithmetic.
            for name, costs, kinds, flops in (
                ("least", [least(problem, backward) for backward in (False, True)], TPUS | GPUS, "float32_flops"),
                (
                    "tpu, σ = 4 px",
                    [on_tpu(problem, 4.0, backward) for backward in (False, True)],
                    TPUS,
                    "bfloat16_flops",
                ),
                ("gpu", [on_gpu(problem, backward) for backward in (False, True)], GPUS, "float32_flops"),
            ):
                counts = [[f"{cost.flops / 1e9:.1f}" for cost in costs], [f"{cost.memory / 1e6:.0f}" for cost in costs]]
                times = [
                    [f"{seconds(cost, kinds[device], flops) * 1e6:.0f}" for cost in costs] if device in kinds else []
                    for device in devices
                ]
                cells = (f"{size[0]}x{size[1]}, {dtype}", name, *(" / ".join(cell) for cell in counts + times))
                print("| " + " | ".join(cells) + " |")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints both tables."""
    parser = argparse.ArgumentParser(prog="python -m pallas_kernels.roofline", description=__doc__.split("\n")[0])
    parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    print_visits()
    print()
    print_costs()
    return 0
