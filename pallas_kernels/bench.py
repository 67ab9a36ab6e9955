"""Time, memory and achieved rates of every implementation: `python -m pallas_kernels.bench`.

The model's own shapes: an image of each --size gives three levels, of strides 32, 16 and 8, and every token samples
four points a level around itself, for 8 heads of 32 channels. Prints for each implementation that this machine can run,
and for PyTorch's pure `grid_sample` formulation where torch is installed (on a CPU or a CUDA device), for the forward
pass and for forward and backward together:

    ms           median milliseconds of a call, all rows run in turns so that other load meets all alike
    / reference  that divided by the reference's
    / torch      and by PyTorch's, with as many threads
    peak MiB     the most memory held during the first call beyond the inputs; on an accelerator what XLA plans for
                 results and intermediate values
    GB/s, GFLOP/s  the least bytes and operations that the sampling can do with (`least_bytes`, `least_flops`), per
                 second of that median, and as a share of the device's peak where that is known
    compile s    seconds to trace and compile

and how far each forward result is from the reference's. On a CPU all values come from memory and caches as they fall:
achieved rates are only worth comparing with each other.
"""

import argparse
import contextlib
import ctypes
import functools
import importlib.util
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pallas_kernels import api

STRIDES = (32, 16, 8)
SIZES = ((512, 512), (800, 1088), (1024, 1024))
FORWARD, BOTH = "forward", "forward + backward"
TORCH = "torch"
MIB = 2**20


class Peak(NamedTuple):
    """What a device can do at best, per second."""

    memory_bytes: float
    bfloat16_flops: float
    float32_flops: float


# By jax.Device.device_kind. TPUs: cloud.google.com/tpu/docs/v5e, v5p, v6e and tpu7x; a TPU7x chip is two devices, so
# half of it is here. Their float32 peak is not published: a sixth of bfloat16's, since an exact float32 product is six
# bfloat16 products. GPUs: NVIDIA's data sheets, tensor cores without sparsity for bfloat16, plain cores for float32; a
# T4 has no bfloat16, so its float32 rate stands for both.
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


class Problem(NamedTuple):
    """What is sampled: every token of every level is a query."""

    shapes: tuple[tuple[int, int], ...]
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


def least_bytes(problem: Problem, backward: bool) -> int:
    """Bytes that must move between memory and the device: every input read once a pass and every result written once.

    The backward pass reads the three inputs again, and the gradient of the output; it writes three gradients.
    """
    value = out = problem.batch * problem.tokens * problem.heads * problem.channels
    inputs = value + 2 * problem.samples + problem.samples
    elements = inputs + out
    if backward:
        elements += inputs + out + inputs
    return elements * jax.numpy.dtype(problem.dtype).itemsize


def least_flops(problem: Problem, backward: bool) -> int:
    """Operations on channels: four neighbours a sample, a multiplication and an addition each.

    The backward pass does that twice: the product of each neighbour with the output's gradient, from which follow the
    gradients of weight and location, and its share of the gradient added to the value's. What is done once a sample and
    not once a channel is left out, and so is whatever more a formulation by matrix products computes.
    """
    once = problem.samples * 4 * problem.channels * 2
    return once * 3 if backward else once


class Case(NamedTuple):
    """One program, ready to run."""

    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    """For what `call` returned: an accelerator may still be at work on it."""
    compile_seconds: float | None
    peak_memory: int | None


class Bench(NamedTuple):
    """One image size."""

    size: tuple[int, int]
    problem: Problem
    arrays: tuple[np.ndarray, ...]
    cases: dict[tuple[str, str], Case]
    """By pass and implementation."""
    differences: dict[str, float]
    """From the reference's forward result, relative to its largest value, by implementation."""


def random_arrays(problem: Problem, sigma: float) -> tuple[np.ndarray, ...]:
    """value, locations, weights, the output's gradient; points lie `sigma` pixels of their level around a query."""
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


def prepare(size: tuple[int, int], implementations: Sequence[str], problem: Problem, sigma: float) -> Bench:
    """Compiles each implementation and runs it once, for its memory."""
    arrays = random_arrays(problem, sigma)
    on_device = jax.block_until_ready([jax.numpy.asarray(array, problem.dtype) for array in arrays])
    cases, results = {}, {}
    for name in implementations:
        sample = functools.partial(api.ms_deform_attn, shapes=problem.shapes, implementation=name)
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


def torch_cases(problem: Problem, arrays: tuple[np.ndarray, ...], threads: int) -> dict[tuple[str, str], Case]:
    """PyTorch's formulation on the same arrays, on a CUDA device where JAX uses one too."""
    import torch

    torch.set_num_threads(threads)
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    dtype = getattr(torch, problem.dtype)
    *inputs, grad = (torch.from_numpy(array).to(device, dtype) for array in arrays)
    trainable = [array.clone().requires_grad_() for array in inputs]

    def forward() -> Any:
        with torch.inference_mode():
            return torch_ms_deform_attn(*inputs, problem.shapes)

    def both() -> Any:
        for array in trainable:
            array.grad = None
        out = torch_ms_deform_attn(*trainable, problem.shapes)
        out.backward(grad)
        return out

    def wait(result: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    cases = {}
    for which, call in ((FORWARD, forward), (BOTH, both)):
        if device == "cpu":
            _, peak = measure_peak(call)
        else:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            wait(call())
            peak = torch.cuda.max_memory_allocated() - before
        cases[which, TORCH] = Case(call, wait, None, peak)
    return cases


def torch_ms_deform_attn(value, locations, weights, shapes):
    """The definition by `grid_sample`, level by level: what runs in PyTorch without a compiled operator."""
    import torch
    from torch.nn.functional import grid_sample

    batch, _, heads, channels = value.shape
    queries = weights.shape[1]
    # [B, N, M, D] to planes [B M, D, h, w]; [B, Q, M, L, P, 2] to grids [B M, L, Q, P, 2], from -1 to 1.
    planes = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], dim=-1)
    grids = (2 * locations - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)
    samples = [
        grid_sample(plane.unflatten(-1, shape), grids[:, level], padding_mode="zeros", align_corners=False)
        for level, (plane, shape) in enumerate(zip(planes, shapes, strict=True))
    ]
    samples = torch.stack(samples, dim=-2)  # [B M, D, Q, L, P]
    weights = weights.permute(0, 2, 1, 3, 4).flatten(0, 1)[:, None]
    out = (samples * weights).sum(dim=(-1, -2))
    return out.reshape(batch, heads, channels, queries).permute(0, 3, 1, 2).contiguous()


def measure_peak(run: Callable[[], Any]) -> tuple[Any, int | None]:
    """The result of `run`, and the most memory that this process held meanwhile beyond what it held before.

    None where the system does not tell (only Linux does), and for accelerators, whose memory is not the process's.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # or memory freed earlier and kept by malloc would be used again unseen
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = _process_memory("VmRSS")
        result = run()
        return result, _process_memory("VmHWM") - before
    except OSError:
        return run(), None


def _process_memory(field: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) * 1024


def medians(cases: dict[tuple[str, str], Case], repeats: int) -> dict[tuple[str, str], float]:
    """Median seconds of a call after the first, the cases of each pass run in turns."""
    seconds = {key: [] for key in cases}
    for which in (FORWARD, BOTH):
        rivals = {key: case for key, case in cases.items() if key[0] == which}
        for _ in range(repeats + 1):
            for key, case in rivals.items():
                seconds[key].append(_seconds_of(case))
    return {key: statistics.median(times[1:]) for key, times in seconds.items()}


def _seconds_of(case: Case) -> float:
    # An accelerator is asked ten times in a row, or the host's part of a call would be counted with it.
    calls = 1 if jax.default_backend() == "cpu" else 10
    time.sleep(0.02)  # until the threads of whoever ran before have stopped spinning
    start = time.perf_counter()
    for _ in range(calls):
        result = case.call()
    case.wait(result)
    return (time.perf_counter() - start) / calls


def report(bench: Bench, seconds: dict[tuple[str, str], float], device_kind: str) -> None:
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
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not all(map(int, found.groups())):
        raise argparse.ArgumentTypeError(f"size {text!r} is not HEIGHTxWIDTH, such as 800x1088")
    return int(found[1]), int(found[2])


def parse_name(text: str) -> str:
    if text not in api.IMPLEMENTATIONS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an implementation; choose from {', '.join(api.IMPLEMENTATIONS)}"
        )
    return text


def parse_count(text: str) -> int:
    if not re.fullmatch(r"\d+", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def parse_pixels(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a distance in pixels, such as 4 or 0.5")
    return float(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pallas_kernels.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=parse_size, nargs="+", default=SIZES, help="images' HEIGHTxWIDTH")
    parser.add_argument("--implementation", type=parse_name, nargs="+", help="default: all that run on this machine")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=parse_count, default=1)
    parser.add_argument(
        "--sigma", type=parse_pixels, default=4.0, help="spread of the points around a query, in pixels"
    )
    parser.add_argument("--repeats", type=parse_count, default=5)
    args = parser.parse_args(argv)
    # torch may want a part of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Or the seconds to compile would be those of an earlier run.
    jax.config.update("jax_enable_compilation_cache", False)
    backend, device_kind = jax.default_backend(), jax.devices()[0].device_kind
    available = [name for name in api.IMPLEMENTATIONS if name not in api.PLATFORMS or name == backend]
    names = list(dict.fromkeys(args.implementation or available))
    for name in names:
        if name not in available:
            parser.error(f"implementation {name!r} does not run on this machine's {backend}; {', '.join(available)} do")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    benches = []
    for size in args.size:
        shapes = tuple((-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES)
        problem = Problem(shapes, args.batch, dtype=args.dtype)
        benches.append(prepare(size, names, problem, args.sigma))
    # torch is loaded once JAX's memory has been measured.
    with_torch = importlib.util.find_spec("torch") is not None and _torch_has(backend)
    print(
        f"ms_deform_attn on {device_kind} ({threads} threads), jax {jax.__version__}, {args.dtype}, "
        f"batch {args.batch}, {problem.heads} heads x {problem.channels} channels, {len(STRIDES)} levels x "
        f"{problem.points} points, {args.sigma:g} px around each query; "
        + ("torch beside it" if with_torch else "without torch")
    )
    for bench in benches:
        if with_torch:
            bench.cases.update(torch_cases(bench.problem, bench.arrays, threads))
        report(bench, medians(bench.cases, args.repeats), device_kind)
    return 0


def _torch_has(backend: str) -> bool:
    import torch

    return backend == "cpu" or (backend == "gpu" and torch.cuda.is_available())


if __name__ == "__main__":
    sys.exit(main())
