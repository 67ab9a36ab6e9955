"""Four virtual devices share the batch, with the parameters on each, and exchange no values."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import depthwise_norm
from tests.pallas_kernels.deform_attn.test_sharding import COLLECTIVES
from tests.pallas_kernels.depthwise.test_depthwise import EPS, arrays


def test_in_a_process_with_four_devices():
    """Runs in a separate process, since the number of devices is fixed when a process starts."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.pallas_kernels.depthwise.test_sharding"]
    done = subprocess.run(command, check=False, env={**os.environ, **flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["4: equal", "2: equal", "3: equal"]


def check(batch: int, axes: tuple[str, ...]) -> None:
    """axes: those of the mesh that divide the batch."""
    case = arrays((batch, 5, 9, 8), 7, [[5, 9 - image] for image in range(batch)])
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    batched, whole = NamedSharding(mesh, P(axes or None)), NamedSharding(mesh, P())
    placed = [jax.device_put(values, batched if index < 2 else whole) for index, values in enumerate(case)]
    with jax.set_mesh(mesh):
        program = jax.jit(lambda *values: depthwise_norm(*values, eps=EPS)).lower(*placed).compile()
    assert not re.search(COLLECTIVES, program.as_text())
    found = program(*placed)
    assert found.sharding.is_equivalent_to(batched, found.ndim)
    expected = depthwise_norm(*case, eps=EPS)
    # The same program on each part; nothing but the vectorisation of sums may differ.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


if __name__ == "__main__":
    for batch, axes in ((4, ("data", "fsdp")), (2, ("data",)), (3, ())):
        check(batch, axes)
        print(f"{batch}: equal")
