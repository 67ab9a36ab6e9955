"""Times the operations that the model spends most of its time in: depthwise convolution and deformable attention."""

import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fcclip_jax.models import depthwise as depthwise_module
from fcclip_jax.models.descriptions import CLIP_MODELS
from pallas_kernels.deform_attn import api, bench
from pallas_kernels.deform_attn.problems import Problem, level_shapes
from pallas_kernels.measuring import BOTH, FORWARD, MIB, medians
from tests.device.running import Row

SIZE = (800, 1088)


def depthwise(small: bool) -> Iterator[Row]:
    """Yields microseconds of one depthwise convolution of each stage of ConvNeXt-L, by each formulation."""
    rng = np.random.default_rng(0)
    ways = {"convolution": depthwise_module._convolution, "shifted sum": depthwise_module._shifted_sum}
    for dtype in ("float32", "bfloat16"):
        for stage, channels in enumerate(CLIP_MODELS["convnext_large_d_320"].image.dims):
            height, width = (side // (4 << stage) // (8 if small else 1) for side in SIZE)
            x = jnp.asarray(rng.standard_normal((1, height, width, channels), np.float32), dtype)
            weight = jnp.asarray(rng.standard_normal((7, 7, channels), np.float32) / 7, dtype)
            row = {"dtype": dtype, "stage": stage + 1, "shape": f"{height}x{width}x{channels}"}
            results = {}
            for name, way in ways.items():
                program = jax.jit(way).lower(x, weight).compile()
                results[name] = np.asarray(program(x, weight), np.float32)
                row[f"{name}, us"] = 1e6 * seconds_of(functools.partial(program, x, weight), 3 if small else 50)
            first, second = results.values()
            yield row | {"they differ by": float(np.abs(first - second).max() / np.abs(first).max())}


def seconds_of(call: Callable[[], jax.Array], calls: int) -> float:
    """Returns the seconds of a call, from several in a row, which hide the host's part."""
    jax.block_until_ready(call())
    begin = time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - begin) / calls


def deformable_attention(small: bool) -> Iterator[Row]:
    """Yields milliseconds of deformable attention, forward and with its gradients, and without a fixed order of sums."""
    backend = jax.default_backend()
    names = [name for name in ("gpu", "xla") if api.PLATFORMS.get(name) in (None, "cuda" if backend == "gpu" else "")]
    sizes = ((96, 128),) if small else ((1024, 1024), SIZE)
    for size in sizes:
        for dtype in ("float32", "bfloat16"):
            problem = Problem(level_shapes(size), dtype=dtype)
            ready = bench.prepare(size, names, problem, 4.0)
            found = medians(ready.cases, 2 if small else 5)
            for name in names:
                yield {
                    "size": "x".join(map(str, size)),
                    "dtype": dtype,
                    "implementation": name,
                    "forward, ms": 1e3 * found[FORWARD, name],
                    "both, ms": 1e3 * found[BOTH, name],
                    "both, MiB": (ready.cases[BOTH, name].peak_memory or 0) / MIB,
                    "compile s": ready.cases[BOTH, name].compile_seconds,
                }
