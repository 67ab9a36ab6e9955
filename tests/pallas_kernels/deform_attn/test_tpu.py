"""Tests the TPU kernels alone: the real compiler, the visited rows, the precision option, and refused arrays."""

import functools
import importlib.util
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import compile_tpu, ms_deform_attn
from pallas_kernels.deform_attn import tpu, tpu_layout
from tests.pallas_kernels.deform_attn.cases import random_case

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler, libtpu, is not installed (Linux only)"
)


@needs_compiler
def test_the_tpu_compiler_takes_both_passes_on_one_device_and_shards_them_on_four():
    """Runs in a separate process, since libtpu serves one process at a time and stays loaded."""
    command = [sys.executable, "-m", "tests.pallas_kernels.deform_attn.test_tpu"]
    done = subprocess.run(
        command, check=False, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def compile_for_v5e() -> None:
    devices = compile_tpu.devices(compile_tpu.TOPOLOGIES["v5e"])
    made = compile_tpu.compile_for(devices[0], compile_tpu.BOTH, "1024x1024", 4, "bfloat16")
    assert 2**20 < made.vmem < tpu.VMEM
    assert made.hbm_temporaries < 2**30
    # Mosaic rejects indices of 64 bits, which Python's numbers become with x64, and bfloat16 products of the highest precision.
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        inputs = compile_tpu.arguments(((8, 8),), 1, jnp.float32, jax.sharding.SingleDeviceSharding(devices[0]))
        jax.jit(compile_tpu.passes(((8, 8),))[compile_tpu.BOTH]).lower(*inputs).compile()
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), devices=devices[:4], axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    shapes = compile_tpu.SIZES["1024x1024"]
    inputs = compile_tpu.arguments(shapes, 4, jnp.float32, sharding)
    text = jax.jit(compile_tpu.passes(shapes)[compile_tpu.BOTH]).lower(*inputs).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert f"f32[1,8,3,12,{sum(h * w for h, w in shapes)}]" in text  # one image a device
    assert not re.search(r"all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter", text)


def test_rows_by_hand():
    """Two levels, one head, one block: points in rows 2 to 5 of ten, and points above all three rows."""
    y = np.full((1, 1, 2, 1, 1, tpu_layout.BLOCK), -5.0, np.float32)
    y[0, 0, 0, 0, 0, :3] = 2.5, 3.0, 4.25
    first, bands = tpu_layout.row_ranges(jnp.asarray(y), ((10, 4), (3, 4)), 2)
    np.testing.assert_array_equal(first[:, :, 0], [[[2]]])
    np.testing.assert_array_equal(bands, [[[[2], [0]]]])  # rows 2, 3 and 4, 5


@pytest.mark.parametrize(
    ("y", "first", "bands"),
    [
        (-0.5, 0, 1),  # half a row above the first, which it reads
        (-1.0, 0, 0),  # a whole one
        (9.5, 9, 1),
        (10.0, 0, 0),
        (0.0, 0, 1),
    ],
)
def test_rows_at_the_border(y: float, first: int, bands: int):
    points = jnp.full((1, 1, 1, 1, 1, tpu_layout.BLOCK), y, jnp.float32)
    found_first, found_bands = tpu_layout.row_ranges(points, ((10, 4),), 8)
    assert found_bands.item() == bands
    if bands:
        assert found_first.item() == first


def test_precision_is_what_it_says():
    """Products of bfloat16 have errors of eight bits: far above those of float32."""
    case = random_case(((9, 14),), queries=150, heads=1)
    exact, rounded = (
        jax.jit(functools.partial(tpu.forward, shapes=case.shapes, precision=precision, interpret=True))(
            *case.arrays[:3]
        )
        for precision in ("float32", "bfloat16")
    )
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-4 < error < 1e-2


def test_three_terms_hold_every_bit_of_float32():
    x = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(-15, 10).repeat(40)
    x = x.astype(np.float32)
    terms = jax.jit(tpu_layout.split_terms)(x)
    np.testing.assert_array_equal(sum(np.asarray(term, np.float64) for term in terms), x.astype(np.float64))


def test_levels_that_do_not_fit_are_refused_by_name_and_left_to_xla_otherwise():
    shapes = ((512, 512),)
    value = jax.ShapeDtypeStruct((1, 512 * 512, 8, 32), jnp.float32)
    weights = jax.ShapeDtypeStruct((1, 100, 8, 1, 4), jnp.float32)
    locations = jax.ShapeDtypeStruct((*weights.shape, 2), jnp.float32)

    def sample(*arrays, implementation=None):
        return ms_deform_attn(*arrays, shapes, implementation=implementation)

    text = jax.jit(sample).trace(value, locations, weights).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in text
    with pytest.raises(ValueError, match=r"one head of all levels takes \d+ MiB of VMEM, more than 48; choose 'xla'"):
        jax.eval_shape(functools.partial(sample, implementation="tpu"), value, locations, weights)


if __name__ == "__main__":
    compile_for_v5e()
