"""The entry point: its checks, the choice by platform, gradients."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import lowering, ms_deform_attn, reference
from tests.pallas_kernels.cases import PYRAMID, random_case

CASE = random_case(PYRAMID, batch=4, channels=16)
VALUE, LOCATIONS, WEIGHTS, GRAD = CASE.arrays


def loss(value, locations, weights, **options):
    out = ms_deform_attn(value, locations, weights, PYRAMID, **options)
    return (out * GRAD[: out.shape[0]]).sum()


@pytest.mark.parametrize("implementation", [None, "xla", "reference"])
def test_result_and_gradients(implementation):
    """Compares with the definition, up to rounding."""
    found = jax.value_and_grad(loss, argnums=(0, 1, 2))(VALUE, LOCATIONS, WEIGHTS, implementation=implementation)
    out = reference.ms_deform_attn(*map(jnp.asarray, CASE.arrays[:3]), PYRAMID)
    expected = (out * GRAD).sum(), reference.backward(*map(jnp.asarray, CASE.arrays), PYRAMID)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


def test_vmap_is_another_batch():
    stacked = [np.stack([x, x[::-1]]) for x in CASE.arrays[:3]]
    found = jax.vmap(lambda *arrays: ms_deform_attn(*arrays, PYRAMID))(*stacked)
    expected = ms_deform_attn(VALUE, LOCATIONS, WEIGHTS, PYRAMID)
    np.testing.assert_allclose(found, np.stack([expected, expected[::-1]]), rtol=1e-6, atol=1e-6)  # rounding


# JAX warns at every lowering since 0.12; gpu.py has the consequences.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_one_traced_program_has_the_kernel_of_every_platform(direction):
    """Lowered for a TPU and a GPU without either: the Mosaic and the Triton kernel, and neither for a CPU."""
    function = loss if direction == "forward" else jax.grad(loss, argnums=(0, 1, 2))
    calls = {}
    # JAX 0.12 needs the name of the GPU.
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="cuda")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), (), abstract_device=device)):
        traced = jax.jit(function).trace(VALUE, LOCATIONS, WEIGHTS)
    for platform in ("cpu", "tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        calls[platform] = set(re.findall(r"tpu_custom_call|__gpu\$xla\.gpu\.triton|triton_kernel_call", text))
    assert not calls["cpu"]
    assert calls["tpu"] == {"tpu_custom_call"}
    assert len(calls["cuda"]) == 1 and "triton" in calls["cuda"].pop()


def test_float64_runs_everywhere_for_the_kernels_do_not():
    with jax.enable_x64(True):
        arrays = [np.asarray(x, np.float64) for x in CASE.arrays[:3]]
        traced = jax.jit(lambda *arrays: ms_deform_attn(*arrays, PYRAMID)).trace(*arrays)
        assert "tpu_custom_call" not in traced.lower(lowering_platforms=("tpu",)).as_text()
        with pytest.raises(
            ValueError, match="implementation 'tpu' cannot run value .*float64.*; choose 'xla', or None"
        ):
            ms_deform_attn(*arrays, PYRAMID, implementation="tpu")


def test_the_choice_is_logged_once(caplog):
    lowering.log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="pallas_kernels"):
        for scale in (1.0, 2.0):
            jax.jit(lambda value, scale=scale: loss(value * scale, LOCATIONS, WEIGHTS))(VALUE)
    assert caplog.messages == ["ms_deform_attn runs as 'xla' on cpu"]


@pytest.mark.parametrize(("implementation", "platform"), [("tpu", "tpu"), ("gpu", "cuda")])
def test_a_named_kernel_on_another_platform(implementation, platform):
    with pytest.raises(ValueError, match=f"{implementation!r} runs on {platform} only, but this program is for cpu"):
        ms_deform_attn(VALUE, LOCATIONS, WEIGHTS, PYRAMID, implementation=implementation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, o, w, s: (v[0], o, w, s), r"expected value \[B,N,M,D\].*got value \(267, 2, 16\)"),
        (lambda v, o, w, s: (v, o[..., 0], w, s), r"locations \(4, 23, 2, 3, 4\)"),
        (lambda v, o, w, s: (v, o, w[0], s), r"weights \(23, 2, 3, 4\)"),
        (lambda v, o, w, s: (v, o, w, s[:2]), r"do not add up to the 267 rows of value"),
        (lambda v, o, w, s: (v[:, :198], o, w, ((0, 3), *s[2:])), r"at least one row and one column"),
        (lambda v, o, w, s: (v, o[:, :5], w, s), r"queries, heads, levels or points differ: .*\(4, 5, 2, 3, 4, 2\)"),
        (lambda v, o, w, s: (v[:1], o, w, s), r"batch, queries, heads, levels or points differ"),
        (lambda v, o, w, s: (v, o[..., :1], w, s), r"points differ: .*\(4, 23, 2, 3, 4, 1\)"),
        (lambda v, o, w, s: (v, jnp.asarray(o, jnp.bfloat16), w, s), r"dtypes differ: value float32, loc.*bfloat16"),
        (lambda v, o, w, s: (*(np.asarray(x, np.float16) for x in (v, o, w)), s), r"value float16.*cast them to"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        ms_deform_attn(*change(VALUE, LOCATIONS, WEIGHTS, PYRAMID))
    text = str(caught.value)
    assert "\n" not in text and "value (" in text and "locations (" in text and "weights (" in text and "((" in text


@pytest.mark.parametrize("shapes", [((3, 5), (6, 9, 1), (11, 18)), ("3x5", "6x9")])
def test_level_shapes_that_are_none(shapes):
    unchecked = getattr(ms_deform_attn, "__wrapped__", ms_deform_attn)  # the tests' type checks come before ours
    with pytest.raises(ValueError, match=r"level shapes are .*; give the \(height, width\) of every level"):
        unchecked(VALUE, LOCATIONS, WEIGHTS, shapes)


@pytest.mark.parametrize("options", [{"implementation": "cuda"}, {"precision": "high"}])
def test_names_that_do_not_exist(options):
    with pytest.raises(ValueError, match=r"unknown \w+ '\w+'; choose one of .*, or None"):
        ms_deform_attn(VALUE, LOCATIONS, WEIGHTS, PYRAMID, **options)
