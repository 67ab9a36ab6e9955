"""Compiles the GPU kernels to machine code, on a machine without a GPU: `python -m pallas_kernels.compile_gpu`.

JAX lowers each kernel for CUDA to Triton's intermediate code. Triton from pip (Linux; torch's CUDA wheels install it
too) compiles that to machine code, and its ptxas reports registers and spills. XLA on a GPU runs its own version of
Triton, so the figures are close to those of the code that a GPU runs, not equal to them.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import itertools
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxlib.mlir import ir

from pallas_kernels.deform_attn import gpu
from pallas_kernels.depthwise import bench as depthwise_bench
from pallas_kernels.depthwise import gpu as depthwise_gpu

# The smallest levels first, as the pixel decoder has them for a 1024x1024 image: strides 32, 16 and 8.
SHAPES = ((32, 32), (64, 64), (128, 128))
HEADS, CHANNELS, POINTS = 8, 32, 4
DEVICES = {80: "NVIDIA A100", 90: "NVIDIA H100"}
CALL = "__gpu$xla.gpu.triton"


class Kernel(NamedTuple):
    """One Pallas kernel after JAX's lowering: its name, Triton's code as text, and how it is launched."""

    name: str
    code: str
    warps: int
    stages: int
    programs: int


class Build(NamedTuple):
    """A compiled kernel, as Triton and ptxas report it; spills and shared memory are in bytes."""

    seconds: float
    registers: int
    spills: int
    shared: int


def lower(function, *arguments: jax.ShapeDtypeStruct, capability: int) -> list[Kernel]:
    """Returns the Pallas kernels of `function`, lowered for CUDA by the installed JAX. No GPU is needed."""
    # JAX 0.12 needs the name of the GPU.
    device = jax.sharding.AbstractDevice(device_kind=DEVICES[capability], num_cores=None, platform="cuda")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), (), abstract_device=device)):
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    return [_kernel(call) for call in _triton_calls(lowered.compiler_ir("stablehlo").operation)]


def build(kernel: Kernel, capability: int) -> Build:
    """Compiles a lowered kernel to machine code with Triton, which must be installed."""
    import triton
    from triton.backends.compiler import GPUTarget

    knobs, log = triton.knobs, io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        knobs.cache.scope(),
        knobs.compilation.scope(),
        knobs.nvidia.scope(),
        contextlib.redirect_stdout(log),
    ):
        knobs.cache.dir, knobs.compilation.always_compile = folder, True
        # The assembler's report has the spills; the machine code does not.
        knobs.nvidia.dump_ptxas_log = True
        source = pathlib.Path(folder, "kernel.ttir")
        source.write_text(kernel.code, "utf-8")
        options = {"num_warps": kernel.warps, "num_stages": kernel.stages, "enable_fp_fusion": True}
        begin = time.perf_counter()
        compiled = triton.compile(str(source), target=GPUTarget("cuda", capability, 32), options=options)
        seconds = time.perf_counter() - begin
    report = log.getvalue()
    stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report).groups()
    registers = re.search(r"Used (\d+) registers", report)[1]
    return Build(seconds, int(registers), int(stores) + int(loads), compiled.metadata.shared)


def kernels(dtype: jax.typing.DTypeLike, capability: int, shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[Kernel]:
    """Lowers each kernel of `ms_deform_attn` once: forward, backward, and the value gradient with and without atomics."""
    pixels = sum(h * w for h, w in shapes)
    value = jax.ShapeDtypeStruct((1, pixels, HEADS, CHANNELS), dtype)
    weights = jax.ShapeDtypeStruct((1, pixels, HEADS, len(shapes), POINTS), dtype)
    locations = jax.ShapeDtypeStruct((*weights.shape, 2), dtype)

    def forward(*arguments):
        return gpu.forward(*arguments, shapes)

    def backward(*arguments):
        return gpu.backward(*arguments, shapes)

    def deterministic(*arguments):
        return gpu.backward(*arguments, shapes, deterministic=True)

    found = {}
    for function, *inputs in ((forward,), (backward, value), (deterministic, value)):
        for kernel in lower(function, value, locations, weights, *inputs, capability=capability):
            found.setdefault(kernel.name, kernel)
    return list(found.values())


def depthwise_kernels(dtype: jax.typing.DTypeLike, capability: int) -> list[Kernel]:
    """Lowers the kernel of `depthwise_norm` for each stage of ConvNeXt-L, whose channels are appended to its name."""
    found = []
    for stage in depthwise_bench.STAGES:
        x, valid_hw, *parameters = (
            jax.ShapeDtypeStruct(array.shape, dtype if array.dtype == jnp.float32 else array.dtype)
            for array in depthwise_bench.random_arrays(stage, batch=1)
        )
        function = functools.partial(depthwise_gpu.depthwise_norm, eps=depthwise_bench.EPS)
        (kernel,) = lower(function, x, valid_hw, *parameters, capability=capability)
        found.append(kernel._replace(name=f"{kernel.name}_{stage[-1]}"))
    return found


def _triton_calls(operation: ir.Operation) -> Iterator[ir.Operation]:
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                if "call_target_name" in inner.attributes and inner.attributes["call_target_name"].value == CALL:
                    yield inner.operation
                yield from _triton_calls(inner.operation)


def _kernel(call: ir.Operation) -> Kernel:
    from jaxlib.triton import dialect  # Not every platform's jaxlib has it.

    config = call.attributes["mhlo.backend_config"]
    with ir.Context() as context:
        context.allow_unregistered_dialects = True
        dialect.register_dialect(context)
        # The bytes are in jaxlib's version of MLIR; as text, another version reads them too.
        code = ir.Module.parse(config["ir"].value_bytes).operation.get_asm()
    programs = config["grid_x"].value * config["grid_y"].value * config["grid_z"].value
    return Kernel(config["name"].value, code, config["num_warps"].value, config["num_stages"].value, programs)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table of all kernels and returns the exit code: 2 if Triton is missing."""
    parser = argparse.ArgumentParser(prog="python -m pallas_kernels.compile_gpu", description=__doc__.split("\n")[0])
    parser.parse_args(argv)
    if gpu.plgpu is None or importlib.util.find_spec("triton") is None:
        print("compile_gpu needs Triton, which is not installed; on Linux: pip install triton", file=sys.stderr)
        return 2
    # No accelerator is needed, so none is searched for.
    jax.config.update("jax_platforms", "cpu")
    versions = f"jax {jax.__version__}, triton {importlib.metadata.version('triton')}"
    print(f"{versions}; levels {SHAPES}, {HEADS} heads x {CHANNELS} channels, {POINTS} points, B = 1")
    row = "{:20}{:>10}{:>7}{:>10}{:>9}{:>11}{:>10}{:>10}"
    print(row.format("kernel", "dtype", "arch", "programs", "build s", "registers", "spills B", "shared B"))
    for dtype, capability in itertools.product(("float32", "bfloat16"), DEVICES):
        for kernel in (*kernels(dtype, capability), *depthwise_kernels(dtype, capability)):
            name, made = kernel.name.removeprefix("ms_deform_attn_"), build(kernel, capability)
            figures = (kernel.programs, f"{made.seconds:.2f}", made.registers, made.spills, made.shared)
            print(row.format(name, dtype, f"sm_{capability}", *figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
