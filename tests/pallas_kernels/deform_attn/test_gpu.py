"""The GPU kernels alone: lowering for CUDA, building for real GPUs, the deterministic option."""

import functools
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import compile_gpu
from pallas_kernels.deform_attn import gpu
from tests.pallas_kernels.deform_attn.cases import Case, random_case, with_locations

# JAX warns at every lowering since 0.12; gpu.py has the consequences.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

SHAPES = ((4, 6), (8, 12))
KERNELS = ["forward", "backward", "scatter", "d_value"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kernel_lowers_for_cuda_and_only_the_scatter_has_atomics(dtype: str):
    kernels = compile_gpu.kernels(dtype, 80, SHAPES)
    assert [kernel.name.removeprefix("ms_deform_attn_") for kernel in kernels] == KERNELS
    assert ["tt.atomic" in kernel.code for kernel in kernels] == [False, False, True, False]


def test_the_deterministic_backward_adds_in_a_fixed_order_outside_the_kernels_too():
    value = jax.ShapeDtypeStruct((1, 120, 2, 16), jnp.float32)
    weights = jax.ShapeDtypeStruct((1, 9, 2, 2, 4), jnp.float32)
    locations = jax.ShapeDtypeStruct((1, 9, 2, 2, 4, 2), jnp.float32)
    grad = jax.ShapeDtypeStruct((1, 9, 2, 16), jnp.float32)
    backward = functools.partial(gpu.backward, shapes=SHAPES, deterministic=True, interpret=False)
    text = str(jax.make_jaxpr(backward)(value, locations, weights, grad))
    assert "sort" in text
    assert "scatter" not in text


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")
@pytest.mark.parametrize("capability", compile_gpu.DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_machine_code(dtype: str, capability: int):
    for kernel in compile_gpu.kernels(dtype, capability, SHAPES):
        made = compile_gpu.build(kernel, capability)
        assert made.spills == 0, kernel.name
        assert made.registers <= 64, kernel.name  # Half of the threads that an SM has room for, or more.
        assert made.seconds < 10, kernel.name


def test_without_triton_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert compile_gpu.main([]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "compile_gpu needs Triton, which is not installed; on Linux: pip install triton"
    ]


@functools.partial(jax.jit, static_argnames=("shapes", "deterministic"))
def backward(value, locations, weights, grad, shapes, deterministic):
    return gpu.backward(value, locations, weights, grad, shapes, deterministic=deterministic, interpret=True)


def crowd() -> Case:
    """Draws all samples in one of two cells: the longest possible runs, and the most atomics on one row."""
    locations = np.random.default_rng(0).uniform(0.55, 0.6, (1, 37, 2, 2, 4, 2))
    return with_locations(locations, SHAPES, channels=16, seed=0)


@pytest.mark.parametrize("case", [random_case(SHAPES, channels=16), crowd()], ids=["spread", "crowd"])
def test_deterministic_gradients_are_those_of_the_atomics_and_equal_to_the_bit(case: Case):
    first, again = (backward(*case.arrays, case.shapes, True) for _ in range(2))
    atomics = backward(*case.arrays, case.shapes, False)
    for one, two, other in zip(first, again, atomics, strict=True):
        np.testing.assert_array_equal(one, two)
        # Some dozens of float32 roundings, as the order of the sums differs.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())


def test_what_the_kernels_cannot_run():
    def clause(dtype="float32", batch=1, shapes=SHAPES):
        pixels = sum(h * w for h, w in shapes)
        value = jax.ShapeDtypeStruct((batch, pixels, 8, 32), dtype)
        locations = jax.ShapeDtypeStruct((batch, pixels, 8, len(shapes), 4, 2), dtype)
        clauses = []
        jax.eval_shape(lambda *arrays: clauses.append(gpu.unsupported(*arrays, shapes)), value, locations)
        return clauses[0]

    assert clause() is None
    assert clause("bfloat16") is None
    assert clause("float16") == "the GPU kernels take float32 or bfloat16, not float16"
    assert "65535" in clause(batch=70_000, shapes=((1, 1),))
    assert "2^31" in clause(batch=4000, shapes=compile_gpu.SHAPES)
