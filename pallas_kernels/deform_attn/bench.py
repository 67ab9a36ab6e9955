"""Measures time, memory and rates of each implementation: `python -m pallas_kernels.bench ms_deform_attn`.

Problems have the model's shapes: an image of each --size gives three levels, of strides 32, 16 and 8, and each token
samples four points a level around itself, for 8 heads of 32 channels. The tables, one for the forward pass and one for
forward and backward together, have a row for each implementation that this machine can run, and one for PyTorch's pure
`grid_sample` formulation if torch is installed:

    ms           median milliseconds of a call; all rows run in turns, so that other load affects all alike
    / reference  the same, divided by the reference's
    / torch      the same, divided by PyTorch's with as many threads
    peak MiB     the most memory held during the first call beyond the inputs; on an accelerator, what XLA plans for
                 results and intermediate values
    GB/s, GFLOP/s  the least bytes and operations of any implementation (`least_bytes`, `least_flops`) per second of
                 that median, and as a share of the device's peak if that is in `peaks.PEAKS`
    compile s    seconds to trace and compile
    differs by   largest difference of the forward result from the reference's, relative to its largest value

On a CPU, caches serve an unknown share of the reads: compare the rates with each other only.
"""

import argparse
import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from pallas_kernels.deform_attn import api
from pallas_kernels.deform_attn.problems import (
    STRIDES,
    Problem,
    least_bytes,
    least_flops,
    level_shapes,
    random_arrays,
)
from pallas_kernels.deform_attn.torch_rival import torch_cases, torch_has
from pallas_kernels.measuring import BOTH, FORWARD, MIB, TORCH, Case, measure_peak, medians
from pallas_kernels.peaks import PEAKS, Peak

SIZES = ((512, 512), (800, 1088), (1024, 1024))


class Bench(NamedTuple):
    """One image size, ready to be measured."""

    size: tuple[int, int]
    problem: Problem
    arrays: tuple[np.ndarray, ...]
    cases: dict[tuple[str, str], Case]
    """By pass (FORWARD or BOTH) and implementation."""
    differences: dict[str, float]
    """Largest difference from the reference's forward result, relative to its largest value, by implementation."""


def prepare(
    size: tuple[int, int],
    implementations: Sequence[str],
    problem: Problem,
    sigma: float,
    deterministic: bool = False,
) -> Bench:
    """Compiles each implementation, and runs it once to measure its memory.

    sigma: spread of the points around their query, in pixels.
    deterministic: `ms_deform_attn`'s.
    """
    arrays = random_arrays(problem, sigma)
    on_device = jax.block_until_ready([jax.numpy.asarray(array, problem.dtype) for array in arrays])
    cases, results = {}, {}
    for name in implementations:
        sample = functools.partial(
            api.ms_deform_attn, shapes=problem.shapes, implementation=name, deterministic=deterministic
        )
        for which, arguments in ((FORWARD, on_device[:3]), (BOTH, on_device)):
            start = time.perf_counter()
            program = jax.jit(sample if which == FORWARD else _with_gradients(sample)).lower(*arguments).compile()
            seconds = time.perf_counter() - start
            call = functools.partial(program, *arguments)
            result, peak = measure_peak(lambda call=call: jax.block_until_ready(call()))
            if jax.default_backend() != "cpu":
                plan = program.memory_analysis()
                peak = plan.temp_size_in_bytes + plan.output_size_in_bytes if plan else None
            cases[which, name] = Case(call, jax.block_until_ready, seconds, peak)
            if which == FORWARD:
                results[name] = np.asarray(result, np.float32)
    reference = results.get("reference")
    differences = {}
    if reference is not None:
        scale = np.abs(reference).max()
        differences = {name: float(np.abs(result - reference).max() / scale) for name, result in results.items()}
    return Bench(size, problem, arrays, cases, differences)


def _with_gradients(sample: Callable) -> Callable:
    def both(value, locations, weights, grad):
        out, gradients = jax.vjp(sample, value, locations, weights)
        return out, gradients(grad)

    return both


def report(bench: Bench, seconds: dict[tuple[str, str], float], device_kind: str) -> None:
    """Prints the two tables of one image size."""
    problem = bench.problem
    levels = " ".join(f"{h}x{w}" for h, w in problem.shapes)
    print(f"\n{bench.size[0]}x{bench.size[1]}: levels {levels}, {problem.tokens} queries")
    for which in (FORWARD, BOTH):
        moved, operations = (count(problem, which == BOTH) for count in (least_bytes, least_flops))
        print(f"  {which}: at least {moved / 1e6:.1f} MB and {operations / 1e9:.2f} GFLOP")
        print("  " + HEADER)
        for name in (name for found, name in seconds if found == which):
            print("  " + "".join(_row(bench, seconds, which, name, PEAKS.get(device_kind))))


HEADER = (
    f"{'':10}{'ms':>10}{'/ reference':>13}{'/ torch':>9}{'peak MiB':>10}{'GB/s':>17}{'GFLOP/s':>17}{'compile s':>11}"
    f"{'differs by':>12}"
)


def _row(
    bench: Bench, seconds: dict[tuple[str, str], float], which: str, name: str, peak: Peak | None
) -> Iterator[str]:
    case, time_taken = bench.cases[which, name], seconds[which, name]
    yield f"{name:10}{time_taken * 1e3:10.2f}"
    for other, width in (("reference", 13), (TORCH, 9)):
        yield f"{time_taken / seconds[which, other]:{width}.2f}" if (which, other) in seconds else f"{'-':>{width}}"
    yield f"{'-':>10}" if case.peak_memory is None else f"{case.peak_memory / MIB:10.0f}"
    rates = [count(bench.problem, which == BOTH) / time_taken for count in (least_bytes, least_flops)]
    flops = f"{bench.problem.dtype}_flops"
    bests = (peak.memory_bytes, getattr(peak, flops)) if peak else (None, None)
    for rate, best, width in zip(rates, bests, (17, 17), strict=True):
        share = f" ({rate / best:.1%})" if best else ""
        yield f"{f'{rate / 1e9:.2f}{share}':>{width}}"
    yield f"{'-':>11}" if case.compile_seconds is None else f"{case.compile_seconds:11.1f}"
    difference = bench.differences.get(name) if which == FORWARD else None
    yield f"{'-':>12}" if difference is None else f"{difference:12.0e}"


def parse_size(text: str) -> tuple[int, int]:
    """Parses HEIGHTxWIDTH."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not all(map(int, found.groups())):
        raise argparse.ArgumentTypeError(f"size {text!r} is not HEIGHTxWIDTH; give for example 800x1088")
    return int(found[1]), int(found[2])


def parse_name(text: str) -> str:
    """Parses an implementation's name."""
    if text not in api.IMPLEMENTATIONS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an implementation; choose from {', '.join(api.IMPLEMENTATIONS)}"
        )
    return text


def parse_count(text: str) -> int:
    """Parses a positive whole number."""
    if not re.fullmatch(r"\d+", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero; give for example 4")
    return int(text)


def parse_pixels(text: str) -> float:
    """Parses a distance in pixels, not negative."""
    if not re.fullmatch(r"\d+(\.\d*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a distance in pixels; give for example 4 or 0.5")
    return float(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code; mistakes in the arguments exit with 2."""
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.bench ms_deform_attn", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--size", type=parse_size, nargs="+", default=SIZES, metavar="HEIGHTxWIDTH", help="sizes of the images"
    )
    parser.add_argument("--implementation", type=parse_name, nargs="+", help="(default: all that run on this machine)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=parse_count, default=1, help="images in a batch (default: 1)")
    parser.add_argument(
        "--sigma", type=parse_pixels, default=4.0, help="spread of the points around a query, in pixels (default: 4)"
    )
    parser.add_argument("--repeats", type=parse_count, default=5, help="measured calls of each row (default: 5)")
    args = parser.parse_args(argv)
    # PyTorch needs a part of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # With the cache, the seconds to compile would be those of reading an earlier run's programs.
    jax.config.update("jax_enable_compilation_cache", False)
    backend, device_kind = jax.default_backend(), jax.devices()[0].device_kind
    available = [name for name in api.IMPLEMENTATIONS if name not in api.PLATFORMS or name == backend]
    names = list(dict.fromkeys(args.implementation or available))
    for name in names:
        if name not in available:
            parser.error(
                f"implementation {name!r} does not run on this machine's {backend}; choose from {', '.join(available)}"
            )
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    benches = []
    for size in args.size:
        problem = Problem(level_shapes(size), args.batch, dtype=args.dtype)
        benches.append(prepare(size, names, problem, args.sigma))
    # PyTorch is imported after JAX's memory has been measured.
    with_torch = torch_has(backend)
    print(
        f"ms_deform_attn on {device_kind} ({threads} threads), jax {jax.__version__}, {args.dtype}, "
        f"batch {args.batch}, {problem.heads} heads x {problem.channels} channels, {len(STRIDES)} levels x "
        f"{problem.points} points, {args.sigma:g} px around each query; "
        + ("beside PyTorch" if with_torch else "without PyTorch")
    )
    for bench in benches:
        if with_torch:
            bench.cases.update(torch_cases(bench.problem, bench.arrays, threads))
        report(bench, medians(bench.cases, args.repeats), device_kind)
    return 0
