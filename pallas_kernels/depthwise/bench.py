"""Measures each implementation at ConvNeXt-L's stages: `python -m pallas_kernels.bench depthwise_norm`.

The forward pass only: the network's trunk is not trained. The table has a row for each stage of an image of 800x1067,
padded to 800x1088, and implementation that this machine can run:

    blocks       how many blocks of the trunk have this shape
    ms           median milliseconds of a call; all rows of a stage run in turns, so that other load affects all alike
    GB/s         the least bytes of any implementation (`least_bytes`) per second of that median, and as a share of the
                 device's peak if that is in `peaks.PEAKS`
    differs by   largest difference from the reference's result, relative to its largest value

and one for all blocks of the trunk together. On a GPU, float32 convolutions may multiply in TF32, as JAX does there by
default; the other implementations multiply in float32.
"""

import argparse
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.depthwise import api
from pallas_kernels.measuring import FORWARD, Case, medians
from pallas_kernels.peaks import PEAKS

SIZE, EPS = 7, 1e-6
STAGES = {(200, 272, 192): 3, (100, 136, 384): 3, (50, 68, 768): 27, (25, 34, 1536): 3}
"""Blocks of ConvNeXt-L by (height, width, channels) of their arrays."""


class Row(NamedTuple):
    """The measurements of one implementation at one stage."""

    stage: tuple[int, int, int]
    implementation: str
    seconds: float
    difference: float
    """Largest difference from the reference's result, relative to its largest value."""


def least_bytes(stage: tuple[int, int, int], batch: int, dtype: str) -> int:
    """Counts the bytes that must move between memory and device: `x` and the parameters read, the result written."""
    h, w, channels = stage
    return (2 * batch * h * w * channels + (SIZE * SIZE + 3) * channels) * jnp.dtype(dtype).itemsize


def random_arrays(stage: tuple[int, int, int], batch: int) -> tuple[np.ndarray, ...]:
    """Draws x, valid_hw, weight, bias, scale and offset, always the same."""
    h, w, channels = stage
    rng = np.random.default_rng(0)
    x, weight, *vectors = (
        rng.standard_normal(shape, np.float32)
        for shape in ((batch, h, w, channels), (SIZE, SIZE, channels), *[(channels,)] * 3)
    )
    return x, np.full((batch, 2), (h, w), np.int32), weight / SIZE, *vectors


def measure(
    stages: Iterable[tuple[int, int, int]],
    implementations: Sequence[str],
    dtype: str,
    *,
    batch: int = 1,
    repeats: int = 5,
) -> Iterator[Row]:
    """Yields a row for each stage and implementation, stage by stage."""
    for stage in stages:
        x, valid_hw, *parameters = map(jnp.asarray, random_arrays(stage, batch))
        arrays = (x.astype(dtype), valid_hw, *(values.astype(dtype) for values in parameters))
        cases, results = {}, {}
        for name in dict.fromkeys(("reference", *implementations)):
            run = jax.jit(functools.partial(api.depthwise_norm, eps=EPS, implementation=name)).lower(*arrays).compile()
            results[name] = np.asarray(run(*arrays), np.float32)
            if name in implementations:
                cases[FORWARD, name] = Case(functools.partial(run, *arrays), jax.block_until_ready, None, None)
        scale = np.abs(results["reference"]).max()
        for (_, name), seconds in medians(cases, repeats).items():
            difference = float(np.abs(results[name] - results["reference"]).max() / scale)
            yield Row(stage, name, seconds, difference)


def available() -> list[str]:
    """Returns the implementations that this machine can run."""
    backend = jax.default_backend()
    return [name for name in api.IMPLEMENTATIONS if name not in api.PLATFORMS or name == backend]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code; mistakes in the arguments exit with 2."""
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.bench depthwise_norm", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=1, help="images in a batch (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="measured calls of each row (default: 5)")
    args = parser.parse_args(argv)
    for name in ("batch", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; give a whole number above zero")
    # With the cache, an earlier run's programs would be measured.
    jax.config.update("jax_enable_compilation_cache", False)
    device_kind = jax.devices()[0].device_kind
    peak = PEAKS.get(device_kind)
    print(f"depthwise_norm on {device_kind}, jax {jax.__version__}, {args.dtype}, batch {args.batch}")
    print(ROW.format("stage", "blocks", "", "ms", "GB/s", "differs by"))
    trunk = dict.fromkeys(available(), 0.0)
    for stage, name, seconds, difference in measure(
        STAGES, list(trunk), args.dtype, batch=args.batch, repeats=args.repeats
    ):
        trunk[name] += STAGES[stage] * seconds
        rate = least_bytes(stage, args.batch, args.dtype) / seconds
        share = f" ({rate / peak.memory_bytes:.0%})" if peak else ""
        figures = (f"{seconds * 1e3:.3f}", f"{rate / 1e9:.0f}{share}", f"{difference:.0e}")
        print(ROW.format("x".join(map(str, stage)), STAGES[stage], name, *figures), flush=True)
    for name, seconds in trunk.items():
        print(ROW.format("all", sum(STAGES.values()), name, f"{seconds * 1e3:.3f}", "", ""))
    return 0


ROW = "{:14}{:>8}  {:12}{:>10}{:>14}{:>12}"
