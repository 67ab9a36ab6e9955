"""Times the operations that the model spends most of its time in: depthwise convolution and deformable attention."""

import itertools
from collections import defaultdict
from collections.abc import Iterator

import jax

from fcclip_jax.models.precision import choose_precision
from pallas_kernels.deform_attn import bench
from pallas_kernels.deform_attn.problems import Problem, level_shapes
from pallas_kernels.depthwise.bench import STAGES, available, measure
from pallas_kernels.measuring import BOTH, FORWARD, MIB, medians
from tests.device import models
from tests.device.clock import in_time
from tests.device.running import Row

SIZE = (800, 1088)


def depthwise(small: bool) -> Iterator[Row]:
    """Yields milliseconds of the depthwise convolution and layer norm of ConvNeXt-L's blocks, by each implementation.

    Ends each precision with rows for all blocks of the trunk. In TF32 only convolutions multiply so.
    """
    stages = {(12, 16, 64): 3} if small else STAGES
    for precision in in_time(models.precisions()):
        dtype, products = choose_precision(precision, jax.devices()[0])[1:]
        trunk: dict[str, float] = defaultdict(float)
        with jax.default_matmul_precision(products):
            for row in measure(stages, available(), dtype, repeats=2 if small else 5):
                trunk[row.implementation] += stages[row.stage] * row.seconds
                yield {
                    "precision": precision,
                    "stage": "x".join(map(str, row.stage)),
                    "blocks": stages[row.stage],
                    "implementation": row.implementation,
                    "ms": 1e3 * row.seconds,
                    "differs by": row.difference,
                }
        for name, seconds in trunk.items():
            facts = {"precision": precision, "stage": "all", "blocks": sum(stages.values()), "implementation": name}
            yield facts | {"ms": 1e3 * seconds, "differs by": None}


def deformable_attention(small: bool) -> Iterator[Row]:
    """Yields milliseconds of deformable attention, forward and with its gradients, also with sums in a fixed order."""
    backend = jax.default_backend()
    names = ["xla", *(["gpu"] if backend == "gpu" else [])]
    sizes = ((96, 128),) if small else ((1024, 1024), SIZE)
    # The fixed order changes the gradients of the GPU's kernel only.
    orders = (False, True) if backend == "gpu" else (False,)
    for size, dtype, deterministic in in_time(itertools.product(sizes, ("float32", "bfloat16"), orders)):
        problem = Problem(level_shapes(size), dtype=dtype)
        ready = bench.prepare(size, names[-1:] if deterministic else names, problem, 4.0, deterministic)
        found = medians(ready.cases, 2 if small else 5)
        for name in dict.fromkeys(name for _, name in ready.cases):
            yield {
                "size": "x".join(map(str, size)),
                "dtype": dtype,
                "implementation": name,
                "fixed order": deterministic,
                "forward, ms": 1e3 * found[FORWARD, name],
                "both, ms": 1e3 * found[BOTH, name],
                "both, MiB": (ready.cases[BOTH, name].peak_memory or 0) / MIB,
                "compile s": ready.cases[BOTH, name].compile_seconds,
            }
