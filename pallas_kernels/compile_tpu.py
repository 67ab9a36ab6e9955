"""`python -m pallas_kernels.compile_tpu`: the TPU kernels through the real TPU compiler, on a machine without a TPU.

libtpu (from pip, Linux) compiles for a described topology. The table has, for every generation, image size, batch and dtype,
the seconds that the forward pass and both passes take to compile, the VMEM that a kernel's program takes at most, and the HBM of
arguments, results and temporaries. That a program compiles shows that it fits; nothing is run.
"""

import argparse
import functools
import importlib.util
import itertools
import os
import re
import sys
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from pallas_kernels import ms_deform_attn, tpu

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}
SIZES = {"1024x1024": ((32, 32), (64, 64), (128, 128)), "800x1344": ((25, 42), (50, 84), (100, 168))}
"""The levels of the pixel decoder, strides 32, 16 and 8."""

HEADS, CHANNELS, POINTS = 8, 32, 4
MIB = 2**20


class Compiled(NamedTuple):
    """Seconds, and bytes."""

    seconds: float
    vmem: int
    hbm_arguments: int
    hbm_results: int
    hbm_temporaries: int


def devices(topology: str) -> list[jax.Device]:
    """The described TPU's devices, to compile for.

    Raises:
        RuntimeError: libtpu is not installed, or does not take the topology.
    """
    # libtpu reads these when it starts: that it is not on a TPU, must not look for one, and need not be alone.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    if importlib.util.find_spec("libtpu") is None:
        raise RuntimeError("compile_tpu needs the TPU compiler; on Linux: pip install 'jax[tpu]'")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(f"libtpu cannot compile for {topology}: {str(error).splitlines()[0]}") from None


def arguments(shapes: tpu.Shapes, batch: int, dtype: jax.typing.DTypeLike, sharding) -> list[jax.ShapeDtypeStruct]:
    """value, locations, weights and the gradient of the result, of a pixel decoder whose queries are its pixels."""
    pixels = sum(h * w for h, w in shapes)
    points = (batch, pixels, HEADS, len(shapes), POINTS)
    value = (batch, pixels, HEADS, CHANNELS)
    return [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in (value, (*points, 2), points, value)]


def passes(shapes: tpu.Shapes) -> dict[str, Callable]:
    def forward(value, locations, weights, grad):
        return ms_deform_attn(value, locations, weights, shapes, implementation="tpu")

    def both(value, locations, weights, grad):
        out, pullback = jax.vjp(lambda *inputs: forward(*inputs, grad), value, locations, weights)
        return out, *pullback(grad)

    return {"forward": forward, "forward+backward": both}


def compile_for(device: jax.Device, direction: str, size: str, batch: int, dtype: str) -> Compiled:
    shapes = SIZES[size]
    inputs = arguments(shapes, batch, jnp.dtype(dtype), SingleDeviceSharding(device))
    lowered = jax.jit(passes(shapes)[direction]).lower(*inputs)
    begin = time.perf_counter()
    memory = lowered.compile().memory_analysis()
    seconds = time.perf_counter() - begin
    hbm = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return Compiled(seconds, _vmem(device, direction, shapes, dtype), *hbm)


@functools.cache
def _vmem(device: jax.Device, direction: str, shapes: tpu.Shapes, dtype: str) -> int:
    """What the compiler says the kernel takes, when it is given too little to compile at all.

    It takes as much for any batch; with several images the compiler keeps no whole array in VMEM, which would count.
    """
    inputs = arguments(shapes, 4, jnp.dtype(dtype), SingleDeviceSharding(device))

    def stingy(vmem: int):
        return tpu.pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=MIB)

    kernel = tpu.forward if direction == "forward" else tpu.backward
    used = inputs[:3] if direction == "forward" else inputs
    with mock.patch.object(tpu, "_compiler_params", stingy):
        lowered = jax.jit(lambda *arrays: kernel(*arrays, shapes)).lower(*used)
    try:
        lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return int(float(re.search(r"Scoped allocation with size ([\d.]+)M", str(error))[1]) * MIB)
    return MIB


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pallas_kernels.compile_tpu", description=__doc__.split("\n")[0])
    parser.add_argument("--generation", choices=TOPOLOGIES, action="append", help="may be repeated; all by default")
    parser.add_argument("--size", choices=SIZES, action="append", help="may be repeated; all by default")
    chosen = parser.parse_args(argv)
    # libtpu is there for its compiler alone.
    jax.config.update("jax_platforms", "cpu")
    row = "{:5}{:11}{:>3} {:10}{:18}{:>10}{:>10}{:>12}{:>10}{:>12}"
    print(f"jax {jax.__version__}; {HEADS} heads x {CHANNELS} channels, {POINTS} points; MiB and seconds")
    print(
        row.format("TPU", "size", "B", "dtype", "passes", "compile s", "VMEM", "HBM: inputs", "results", "temporaries")
    )
    for generation in chosen.generation or TOPOLOGIES:
        try:
            device = devices(TOPOLOGIES[generation])[0]
        except RuntimeError as error:
            print(f"{generation}: {error}", file=sys.stderr)
            return 2
        for case in itertools.product(chosen.size or SIZES, (1, 4), ("float32", "bfloat16"), passes(())):
            size, batch, dtype, direction = case
            made = compile_for(device, direction, size, batch, dtype)
            figures = (f"{x / MIB:.1f}" for x in made[1:])
            print(row.format(generation, size, batch, dtype, direction, f"{made.seconds:.1f}", *figures), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
