"""Counts the kernels that an H100 would run for one image, without a GPU: `python -m tests.device.hlo`.

XLA's own compiler for NVIDIA GPUs, in jaxlib's CUDA plugin (Linux; `pip install 'jax[cuda13]'`), compiles the stages of
`fcclip_jax.inference.timing` for a described H100. Layouts and fusions are those of a GPU. Nothing is timed there, so
the algorithms of matrix products and convolutions are XLA's first guess. The table has a row for each stage:

    kernels      launches for one image; the body of a loop counts as often as it runs, or once if that depends on the image
    matmul, conv matrix products and convolutions among them
    reduce       fusions with a reduction, such as a layer norm
    transpose    kernels that transpose or copy an array, and the MB that they write
    slice        fusions that only copy a part of an array, such as one block's parameters, and the MB that they write
    compile s    seconds to compile
"""

import argparse
import collections
import importlib.util
import math
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from fcclip_jax.conventions import PRECISIONS, STRIDE, round_up
from fcclip_jax.inference import buckets, timing
from fcclip_jax.models.building import abstract_model, split_for_inference, without_text
from fcclip_jax.models.descriptions import CLIP_MODELS, fcclip_description
from fcclip_jax.models.precision import BY_NAME, TF32, Precision

H100 = pathlib.Path(__file__).with_name("h100.txtpb")
NO_KERNEL = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all"}
BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
COPIES = {"dynamic-slice", "slice", "copy", "bitcast", "parameter", "constant"}


class Instruction(NamedTuple):
    """One line of optimised HLO."""

    shape: str
    opcode: str
    rest: str
    """Operands and attributes."""


Computations = dict[str, list[Instruction]]


def devices() -> Sequence[jax.Device]:
    """Returns a described H100 to compile for.

    Raises:
        RuntimeError: jaxlib's CUDA plugin is not installed, or cannot compile without a GPU.
    """
    if importlib.util.find_spec("jax_plugins") is None or not any(
        importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13)
    ):
        raise RuntimeError("XLA's compiler for GPUs is not installed; on Linux: pip install 'jax[cuda13]'")
    description = topologies.get_topology_desc(platform="cuda", target_config=H100.read_text(), topology="1x1x1")
    return description.devices


def parse(text: str) -> tuple[Computations, str]:
    """Reads optimised HLO: the computations by name, and the name of the entry."""
    computations: Computations = {}
    entry, instructions = "", []
    for line in text.splitlines():
        header = re.fullmatch(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", line)
        if header:
            instructions = computations[header[2]] = []
            entry = header[2] if header[1] else entry
            continue
        found = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line)
        if found:
            instructions.append(Instruction(*found.groups()))
    return computations, entry


def launches(computations: Computations, name: str, times: int = 1) -> Iterator[tuple[str, int, int]]:
    """Yields (kind, launches, bytes of one result) of each kernel of a computation. One branch counts of several."""
    for shape, opcode, rest in computations[name]:
        called = re.search(r"(?:calls|to_apply|body|branch_computations|true_computation)=\{?%?([\w.\-]+)", rest)
        if opcode in NO_KERNEL:
            continue
        if opcode == "while":
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
            yield from launches(computations, called[1], times * int(trips[1] if trips else 1))
        elif opcode in ("call", "conditional"):
            yield from launches(computations, called[1], times)
        else:
            inside = {instruction.opcode for instruction in computations[called[1]]} if opcode == "fusion" else set()
            yield _kind(opcode, rest, inside), times, _bytes(shape)


def _kind(opcode: str, rest: str, inside: set[str]) -> str:
    if "dot" in inside or "cublas" in rest or "__triton_gemm" in rest:
        return "matmul"
    if "cudnn$conv" in rest or "convolution" in inside:
        return "conv"
    if opcode in ("copy", "transpose") or "transpose" in inside:
        return "transpose"
    if inside and inside <= COPIES:
        return "slice"
    if "reduce" in inside:
        return "reduce"
    return "custom call" if opcode == "custom-call" else "other"


def _bytes(shape: str) -> int:
    return sum(
        BYTES.get(dtype, 4) * math.prod(int(side) for side in sides.split(",") if side)
        for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )


def programs(
    size: tuple[int, int], precision: Precision, sharding: SingleDeviceSharding
) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Yields each stage of `fcclip_jax.inference.timing`, lowered for the device."""
    description = fcclip_description(CLIP_MODELS[timing.MODEL])
    graphdef, state = nnx.split(without_text(abstract_model(description)))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    graphdef, state = split_for_inference(nnx.merge(graphdef, zeros), precision, "gpu")
    shape = tuple(round_up(side, STRIDE) for side in size)
    images, image_hw = jax.ShapeDtypeStruct((1, *shape, 3), jnp.uint8), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    text, is_thing = timing.classifier(np.random.default_rng(0), description.clip.image.embed_dim)
    functions = timing.stages(graphdef, precision, buckets.canvas(size))
    features, valid_hw = jax.eval_shape(functions["trunk"], state, images, image_hw)
    pixels = jax.eval_shape(functions["pixel decoder"], state, features, valid_hw)
    masked = (state, pixels, features.clip_dense, valid_hw, text)
    mask_logits, class_probs = jax.eval_shape(functions["mask decoder"], *masked)
    arguments = {
        "trunk": (state, images, image_hw),
        "pixel decoder": (state, features, valid_hw),
        "mask decoder": masked,
        "post-processing": (mask_logits, class_probs, is_thing, text.num_classes, image_hw),
        timing.WHOLE: (state, images, image_hw, text, is_thing),
    }
    for name, inputs in arguments.items():
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding), inputs)
        yield name, jax.jit(functions[name]).trace(*placed).lower(lowering_platforms=("cuda",))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and returns the exit code: 2 if XLA's compiler for GPUs cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m tests.device.hlo", description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=timing.parse_size, default=(800, 1067), metavar="HEIGHTxWIDTH")
    parser.add_argument("--precision", choices=PRECISIONS, default=TF32.name, help="default: %(default)s")
    parser.add_argument("--dump", type=pathlib.Path, help="an existing folder to write the optimised HLO to")
    args = parser.parse_args(argv)
    # The plugin serves as a compiler only.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        sharding = SingleDeviceSharding(devices()[0])
    except RuntimeError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 2
    row = "{:16}{:>9}{:>8}{:>6}{:>8}{:>16}{:>14}{:>11}"
    print(f"jax {jax.__version__}, NVIDIA H100, {args.precision}, {args.size[0]}x{args.size[1]}")
    print(row.format("stage", "kernels", "matmul", "conv", "reduce", "transpose", "slice", "compile s"))
    for name, lowered in programs(args.size, BY_NAME[args.precision], sharding):
        begin = time.perf_counter()
        # No GPU is there to time algorithms on.
        text = lowered.compile(compiler_options={"xla_gpu_autotune_level": "0"}).as_text()
        seconds = time.perf_counter() - begin
        if args.dump:
            (args.dump / f"{name.replace(' ', '_')}.hlo").write_text(text)
        counts, written = collections.Counter(), collections.Counter()
        for kind, times, result in launches(*parse(text)):
            counts[kind] += times
            written[kind] += times * result
        moved = (f"{counts[kind]} ({written[kind] / 1e6:.0f} MB)" for kind in ("transpose", "slice"))
        own = (counts[kind] for kind in ("matmul", "conv", "reduce"))
        print(row.format(name, counts.total(), *own, *moved, f"{seconds:.0f}"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
