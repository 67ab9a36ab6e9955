"""The benchmark's counts, its baseline's values, its table and its refusals. Times are not checked."""

import importlib.util

import jax
import numpy as np
import pytest

import pallas_kernels.bench
from pallas_kernels import measuring
from pallas_kernels.deform_attn import bench, problems, reference, torch_rival

TINY = problems.Problem(((2, 3), (4, 6)), batch=2, heads=3, channels=5, points=2)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")


def test_counts_by_hand():
    assert TINY.tokens == 6 + 24
    assert TINY.samples == 2 * 30 * 3 * 2 * 2
    value = out = 2 * 30 * 3 * 5
    inputs = value + TINY.samples * 3
    assert problems.least_bytes(TINY, backward=False) == 4 * (inputs + out)
    assert problems.least_bytes(TINY, backward=True) == 4 * ((inputs + out) + (inputs + out) + inputs)
    assert problems.least_bytes(TINY._replace(dtype="bfloat16"), backward=True) == 2 * (3 * inputs + 2 * out)
    assert problems.least_flops(TINY, backward=False) == TINY.samples * 4 * 5 * 2
    assert problems.least_flops(TINY, backward=True) == TINY.samples * 4 * 5 * 2 * 3


def test_points_lie_around_their_query():
    value, locations, weights, grad = problems.random_arrays(TINY, sigma=0.0)
    assert value.shape == grad.shape == (2, 30, 3, 5)
    np.testing.assert_allclose(locations[1, 0, 2, 1, 1], [0.5 / 3, 0.5 / 2], rtol=1e-6)  # the first token's own centre
    np.testing.assert_allclose(locations[0, -1, 0, 0, 0], [5.5 / 6, 3.5 / 4], rtol=1e-6)
    np.testing.assert_allclose(weights.sum((-1, -2)), 1, rtol=1e-5)


@needs_torch
def test_pytorch_formulation_is_the_definition():
    import torch

    *inputs, _ = problems.random_arrays(TINY, sigma=2.0)
    expected = reference.ms_deform_attn(*map(jax.numpy.asarray, inputs), TINY.shapes)
    actual = torch_rival.torch_ms_deform_attn(*map(torch.from_numpy, inputs), TINY.shapes)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_peak_memory_is_what_a_call_adds():
    kept = np.ones(2**22)
    size, peak = measuring.measure_peak(lambda: np.ones(2**24).size)
    assert size == 2**24
    if peak is None:
        pytest.skip("a process's peak memory can be read on Linux only")
    assert 0.9 * 2**27 < peak < 1.2 * 2**27  # a few pages more or less are the system's
    del kept


def test_table(capsys):
    assert bench.main(["--size", "33x64", "--repeats", "1", "--batch", "2", "--sigma", "1.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "batch 2" in lines[0] and "1.5 px" in lines[0]
    assert "33x64: levels 2x2 3x4 5x8, 56 queries" in lines
    rows = [line for line in lines if line.strip().startswith("xla")]
    assert len(rows) == 2  # forward, and with backward
    header = next(line for line in lines if line.strip().startswith("ms  "))
    assert {len(row) for row in rows} == {len(header)}
    assert float(rows[0].split()[-1]) < 1e-5  # from the reference


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", "512"], "size '512' is not HEIGHTxWIDTH"),
        (["--size", "0x64"], "size '0x64' is not HEIGHTxWIDTH"),
        (["--implementation", "cuda"], "'cuda' is not an implementation; choose from reference, xla, tpu, gpu"),
        (
            ["--implementation", "xla", "tpu"],
            "implementation 'tpu' does not run on this machine's cpu; choose from reference, xla",
        ),
        (["--repeats", "0"], "'0' is not a whole number above zero"),
        (["--batch", "-1"], "'-1' is not a whole number above zero"),
        (["--sigma", "wide"], "'wide' is not a distance in pixels"),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_operator_that_does_not_exist(capsys):
    assert pallas_kernels.bench.main(["nothing"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no operator 'nothing'; choose ms_deform_attn or depthwise_norm\n"
    )
