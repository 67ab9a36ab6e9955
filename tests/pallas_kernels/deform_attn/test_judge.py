"""Judges all implementations, Pallas kernels interpreted: result and gradients against a float64 evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.deform_attn import gpu, reference, tpu, xla
from tests.pallas_kernels.deform_attn.cases import CASES, Case, by_numpy, grid_sample, points_on_lines, random_case

TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2}
"""Relative to the largest value of each array: some hundred roundings of the arrays' own dtype (24 and 8 bits)."""

FORWARD = {
    "reference": reference.ms_deform_attn,
    "xla": xla.forward,
    "tpu": functools.partial(tpu.forward, interpret=True),
    "gpu": functools.partial(gpu.forward, interpret=True),
}
BACKWARD = {
    "reference": reference.backward,
    "xla": xla.backward,
    "tpu": functools.partial(tpu.backward, interpret=True),
    "gpu": functools.partial(gpu.backward, interpret=True),
    "gpu, deterministic": functools.partial(gpu.backward, deterministic=True, interpret=True),
}
NAMES = ("out", "d_value", "d_locations", "d_weights")


@functools.partial(jax.jit, static_argnames=("implementation", "shapes"))
def both_ways(value, locations, weights, grad, implementation: str, shapes: tuple[tuple[int, int], ...]):
    out = FORWARD[implementation.split(",")[0]](value, locations, weights, shapes=shapes)
    return out, *BACKWARD[implementation](value, locations, weights, grad, shapes=shapes)


def run(implementation: str, case: Case) -> dict[str, np.ndarray]:
    """Computes the result and the three gradients."""
    arrays = both_ways(*case.arrays, implementation, case.shapes)
    assert [array.dtype for array in arrays] == [case.arrays[i].dtype for i in (0, 0, 1, 2)]
    return dict(zip(NAMES, map(np.asarray, arrays), strict=True))


def truth(case: Case) -> dict[str, np.ndarray]:
    """Computes the same in float64, from the values that the arrays hold."""
    return dict(zip(NAMES, by_numpy(case), strict=True))


def judge(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], case: Case, tolerance: float) -> None:
    for name in NAMES:
        assert found[name].shape == expected[name].shape, name
        error = np.abs(found[name].astype(np.float64) - expected[name])
        if name == "d_locations":
            error = np.where(case.ambiguous(), 0.0, error)
        limit = tolerance * np.abs(expected[name]).max(initial=0.0)
        assert error.max(initial=0.0) <= limit, f"{name}: {error.max()} > {limit}"


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("implementation", BACKWARD)
def test_cases(implementation: str, name: str, dtype: str):
    case = CASES[name].cast(dtype)
    judge(run(implementation, case), truth(case), case, TOLERANCES[dtype])


@pytest.mark.parametrize("implementation", BACKWARD)
def test_float32_samples_of_bfloat16_values(implementation: str):
    """Locations keep all their digits: 600 columns are more than bfloat16 tells apart."""
    case = random_case(((2, 600),), channels=16)
    value, locations, weights, grad = case.arrays
    mixed = case._replace(arrays=(np.asarray(value, jnp.bfloat16), locations, weights, np.asarray(grad, jnp.bfloat16)))
    judge(run(implementation, mixed), truth(mixed), mixed, TOLERANCES["bfloat16"])
    rounded = case.cast("bfloat16")
    assert np.abs(run("reference", rounded)["out"].astype(np.float32) - truth(mixed)["out"]).max() > 0.3


@pytest.mark.parametrize("implementation", BACKWARD)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 8), st.sampled_from([1, 2, 8])),
    channels=st.sampled_from([16, 20, 32, 64]),
    sigma=st.sampled_from([0.0, 0.5, 4.0, 1e3]),
    dtype=st.sampled_from(sorted(TOLERANCES)),
)
def test_drawn(implementation: str, seed: int, shapes, sizes, channels: int, sigma: float, dtype: str):
    batch, queries, points, heads = sizes
    sizes = {"batch": batch, "queries": queries, "heads": heads, "points": points, "channels": channels}
    case = random_case(tuple(shapes), sigma=sigma, seed=seed, **sizes).cast(dtype)
    judge(run(implementation, case), truth(case), case, TOLERANCES[dtype])


@pytest.mark.parametrize("name", ["any sizes", "on grid lines"])
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_in_float64(implementation: str, name: str):
    """The definition equals the evaluation that judges all implementations, up to rounding."""
    case = CASES[name]
    with jax.enable_x64(True):
        found = run(implementation, case.cast("float64"))
    judge(found, truth(case), case, 1e-13)


@pytest.mark.parametrize("implementation", BACKWARD)
@pytest.mark.parametrize("name", ["some pixels around", "on grid lines"])
def test_as_pytorch(implementation: str, name: str):
    """Compares with PyTorch's `grid_sample`, kinks included: on levels of 2^n pixels both compute exact coordinates."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    case = CASES[name]
    judge(run(implementation, case), dict(zip(NAMES, grid_sample(case), strict=True)), case, 1e-5)


@pytest.mark.parametrize("implementation", BACKWARD)
def test_as_recorded(implementation: str, shared):
    """Compares with the official code's arrays, except location gradients that its float32 may put beyond a kink."""
    recorded = np.load(shared / "golden" / "extra" / "multi_scale_deform.npz")
    shapes = {0: ((6, 7), (3, 5)), 1: ((4, 8), (8, 4)), 2: ((4, 8), (8, 4)), 3: ((4, 8), (8, 4)), 4: ((6, 7), (3, 5))}
    for index, level_shapes in shapes.items():
        read = {name: recorded[f"case{index}_{name}"] for name in ("value", "loc", "weight", "grad_out")}
        batch, queries, heads = read["loc"].shape[:3]
        grad = read["grad_out"].reshape(batch, queries, heads, -1)
        case = Case((read["value"], read["loc"], read["weight"], grad), level_shapes)
        names = ("out", "grad_value", "grad_loc", "grad_weight")
        expected = dict(zip(NAMES, (recorded[f"case{index}_{name}_f64"] for name in names), strict=True))
        expected["out"] = expected["out"].reshape(grad.shape)
        found = run(implementation, case)
        # Broadcast over x and y.
        ambiguous = recorded[f"case{index}_ambiguous_f32"].astype(bool)[..., None]
        found["d_locations"] = np.where(ambiguous, expected["d_locations"], found["d_locations"])
        judge(found, expected, case, 1e-5)


@pytest.mark.parametrize("implementation", BACKWARD)
def test_two_runs_are_equal_to_the_last_bit(implementation: str):
    """Holds for the GPU's atomics only because they are interpreted: a GPU needs `deterministic=True`."""
    case = CASES["some pixels around"]
    first, second = run(implementation, case), run(implementation, case)
    assert all(first[name].tobytes() == second[name].tobytes() for name in NAMES)


def test_the_judge_is_strict():
    """The judge rejects an error of 1e-4 in a single value of any of the arrays."""
    case = points_on_lines(seed=3)
    expected = truth(case)
    judge(expected, expected, case, 1e-5)
    for name in NAMES:
        wrong = dict(expected)
        wrong[name] = expected[name].copy()
        wrong[name].flat[np.abs(expected[name]).argmax()] *= 1 - 1e-4
        with pytest.raises(AssertionError, match=name):
            judge(wrong, expected, case, 1e-5)


def test_by_hand():
    """Samples two by two pixels: their centre is their mean; half a pixel past the right border is half of a pixel."""
    value = jnp.asarray([1.0, 2.0, 3.0, 6.0], jnp.float32).reshape(1, 4, 1, 1)
    locations = jnp.asarray([[0.5, 0.5], [1.0, 0.25]], jnp.float32).reshape(1, 2, 1, 1, 1, 2)
    weights = jnp.asarray([1.0, 10.0], jnp.float32).reshape(1, 2, 1, 1, 1)
    out = reference.ms_deform_attn(value, locations, weights, ((2, 2),))
    np.testing.assert_allclose(out[0, :, 0, 0], [3.0, 10.0], rtol=1e-6)  # rounding
