"""Compiles the TPU kernels with the TPU compiler, on a machine without a TPU: `python -m pallas_kernels.compile_tpu`.

libtpu (from pip, Linux) compiles for a described topology. The table has a row for each generation, image size, batch,
dtype and direction (the forward pass, or both passes): the seconds to compile, the most VMEM that a kernel's program
takes, and the HBM of arguments, results and temporaries. A program that compiles fits; nothing is run.
"""

import argparse
import functools
import importlib.util
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from pallas_kernels import ms_deform_attn
from pallas_kernels.deform_attn import tpu
from pallas_kernels.deform_attn.tpu_layout import Shapes
from pallas_kernels.measuring import MIB

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}
SIZES = {"1024x1024": ((32, 32), (64, 64), (128, 128)), "800x1344": ((25, 42), (50, 84), (100, 168))}
"""The levels of the pixel decoder, strides 32, 16 and 8."""

HEADS, CHANNELS, POINTS = 8, 32, 4
FORWARD, BOTH = "forward", "forward+backward"


class Compiled(NamedTuple):
    """Seconds to compile, and bytes."""

    seconds: float
    vmem: int
    hbm_arguments: int
    hbm_results: int
    hbm_temporaries: int


def devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a TPU described by name, to compile for.

    Raises:
        RuntimeError: libtpu is not installed, or rejects the topology.
    """
    # libtpu reads these when it starts: without them it searches for a TPU, and allows no other process.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    if importlib.util.find_spec("libtpu") is None:
        raise RuntimeError("compiling for a TPU needs libtpu, which is not installed; on Linux: pip install 'jax[tpu]'")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(f"libtpu cannot compile for {topology}: {str(error).splitlines()[0]}") from None


def arguments(shapes: Shapes, batch: int, dtype: jax.typing.DTypeLike, sharding) -> list[jax.ShapeDtypeStruct]:
    """Describes value, locations, weights and the result's gradient, for a pixel decoder with a query a pixel."""
    pixels = sum(h * w for h, w in shapes)
    points = (batch, pixels, HEADS, len(shapes), POINTS)
    value = (batch, pixels, HEADS, CHANNELS)
    return [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in (value, (*points, 2), points, value)]


def passes(shapes: Shapes) -> dict[str, Callable]:
    """Returns the functions to compile, by direction; each takes the four `arguments`."""

    def forward(value, locations, weights, grad):
        return ms_deform_attn(value, locations, weights, shapes, implementation="tpu")

    def both(value, locations, weights, grad):
        out, pullback = jax.vjp(lambda *inputs: forward(*inputs, grad), value, locations, weights)
        return out, *pullback(grad)

    return {FORWARD: forward, BOTH: both}


def compile_for(device: jax.Device, direction: str, size: str, batch: int, dtype: str) -> Compiled:
    """Compiles one direction at a size of `SIZES`."""
    shapes = SIZES[size]
    inputs = arguments(shapes, batch, jnp.dtype(dtype), SingleDeviceSharding(device))
    lowered = jax.jit(passes(shapes)[direction]).lower(*inputs)
    begin = time.perf_counter()
    memory = lowered.compile().memory_analysis()
    seconds = time.perf_counter() - begin
    hbm = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return Compiled(seconds, kernel_vmem(device, direction, shapes, dtype), *hbm)


@functools.cache
def kernel_vmem(device: jax.Device, direction: str, shapes: Shapes, dtype: str) -> int:
    """Returns the bytes of VMEM that a kernel's program takes, from the compiler's error when it is allowed 1 MiB.

    The number is the same for any batch. With a single image the compiler may keep whole arrays in VMEM, which would
    count; four images prevent that.
    """
    inputs = arguments(shapes, 4, jnp.dtype(dtype), SingleDeviceSharding(device))
    kernel, used = (tpu.forward, inputs[:3]) if direction == FORWARD else (tpu.backward, inputs)
    lowered = jax.jit(lambda *arrays: kernel(*arrays, shapes, vmem_limit=MIB)).lower(*used)
    try:
        lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return int(float(re.search(r"Scoped allocation with size ([\d.]+)M", str(error))[1]) * MIB)
    return MIB


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and returns the exit code: 2 if the TPU compiler cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m pallas_kernels.compile_tpu", description=__doc__.split("\n")[0])
    parser.add_argument("--generation", choices=TOPOLOGIES, action="append", help="repeat for several (default: all)")
    parser.add_argument("--size", choices=SIZES, action="append", help="repeat for several (default: all)")
    chosen = parser.parse_args(argv)
    # libtpu serves as a compiler only.
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
        for case in itertools.product(chosen.size or SIZES, (1, 4), ("float32", "bfloat16"), (FORWARD, BOTH)):
            size, batch, dtype, direction = case
            made = compile_for(device, direction, size, batch, dtype)
            figures = (f"{x / MIB:.1f}" for x in made[1:])
            print(row.format(generation, size, batch, dtype, direction, f"{made.seconds:.1f}", *figures), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
