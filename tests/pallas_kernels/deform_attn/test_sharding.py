"""Four virtual devices share the batch, and exchange no values."""

import contextlib
import os
import re
import subprocess
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import ms_deform_attn
from tests.pallas_kernels.deform_attn.cases import PYRAMID, random_case

COLLECTIVES = r"all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"


CASES = [
    ("xla", 4, "mesh set"),
    ("xla", 4, "mesh of the arrays alone"),
    ("xla", 4, "explicit mesh"),
    ("xla", 2, "mesh set"),
    ("xla", 3, "mesh set"),
    ("reference", 4, "mesh set"),
]


def test_in_a_process_with_four_devices():
    """Runs in a separate process, since the number of devices is fixed when a process starts."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.pallas_kernels.deform_attn.test_sharding"]
    done = subprocess.run(command, check=False, env={**os.environ, **flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [f"{case}: equal" for case in CASES]


def check(implementation: str, batch: int, context: str) -> None:
    case = random_case(PYRAMID, batch=batch, queries=11, channels=16)

    def both(value, locations, weights, grad):
        def sample(*arrays):
            return ms_deform_attn(*arrays, case.shapes, implementation=implementation)

        out, pullback = jax.vjp(sample, value, locations, weights)
        return out, *pullback(grad)

    kind = AxisType.Explicit if context == "explicit mesh" else AxisType.Auto
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(kind, kind))
    # The axes that divide the batch: both, one, or none. Explicit axes: those that the arrays are sharded over.
    axes = {4: ("data", "fsdp"), 2: ("data",), 3: ()}[batch] if kind is AxisType.Auto else ("fsdp",)
    spec = P(axes or None)
    arrays = jax.device_put(case.arrays, NamedSharding(mesh, spec))
    with contextlib.nullcontext() if context == "mesh of the arrays alone" else jax.set_mesh(mesh):
        program = jax.jit(both).lower(*arrays).compile()
    assert not re.search(COLLECTIVES, program.as_text())
    found = program(*arrays)
    assert all(x.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.ndim) for x in found)
    for x, y in zip(found, jax.jit(both)(*case.arrays), strict=True):
        # The same program on each part; nothing but the vectorisation of sums may differ.
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6 * np.abs(y).max())


if __name__ == "__main__":
    for case in CASES:
        check(*case)
        print(f"{case}: equal")
