"""Tests the plain-JAX path alone: its bound on memory, blocks of queries, and coordinates that are rounded once."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.deform_attn import xla

LARGE = ((32, 32), (64, 64), (128, 128))  # a 1024x1024 image
SMALL = ((3, 5), (7, 4))


def random_arrays(shapes, batch=1, heads=8, channels=32, points=4, queries=None, dtype=np.float32):
    rng = np.random.default_rng(0)
    tokens = sum(h * w for h, w in shapes)
    queries = tokens if queries is None else queries
    grid = (batch, queries, heads, len(shapes), points)
    value = rng.standard_normal((batch, tokens, heads, channels))
    grad = rng.standard_normal((batch, queries, heads, channels))
    return [jnp.asarray(x, dtype) for x in (value, rng.uniform(-0.2, 1.2, (*grid, 2)), rng.random(grid), grad)]


def test_intermediate_values_take_less_memory_than_inputs_and_results():
    # All gathered rows at once would take 1 GiB here, 15 times the inputs and the result.
    *inputs, grad = random_arrays(LARGE)
    for function, arrays in ((xla.forward, inputs), (xla.backward, [*inputs, grad])):
        plan = jax.jit(function, static_argnames="shapes").lower(*arrays, shapes=LARGE).compile().memory_analysis()
        assert plan.temp_size_in_bytes < plan.argument_size_in_bytes + plan.output_size_in_bytes


def test_blocks_of_queries_change_nothing(monkeypatch):
    arrays = random_arrays(SMALL, batch=2, heads=3, channels=8, points=2, queries=29)
    whole = xla.backward(*arrays, shapes=SMALL)
    monkeypatch.setattr(xla, "QUERIES_PER_BLOCK", 7)  # five blocks of six queries, the last with one to spare
    blocks = xla.backward(*arrays, shapes=SMALL)
    for expected, actual in zip(whole, blocks, strict=True):
        # The value's gradient is the same sum in another order.
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_more_queries_than_a_block_holds():
    arrays = random_arrays(SMALL, heads=1, channels=8, points=1, queries=xla.QUERIES_PER_BLOCK + 1)
    d_value, d_locations, d_weights = xla.backward(*arrays, shapes=SMALL)
    last = [arrays[0], *(array[:, -1:] for array in arrays[1:])]
    _, d_last_locations, d_last_weights = xla.backward(*last, shapes=SMALL)
    np.testing.assert_allclose(d_locations[:, -1:], d_last_locations, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_weights[:, -1:], d_last_weights, rtol=1e-5, atol=1e-5)
    assert d_value.shape == arrays[0].shape


def test_no_jump_beside_whole_coordinates():
    """All four neighbours of a point must use the same rounded coordinate."""
    shapes = ((1, 49),)  # 1 / 49 is not a float32, so pixels near whole coordinates are rounded to either side of them
    pixels = np.repeat(np.arange(-1, 50), 9)
    locations = ((pixels + 0.5) / 49).astype(np.float32)
    for _ in range(4):
        locations = np.where(
            np.arange(locations.size) % 9 < 4, np.nextafter(locations, -1e3, dtype=np.float32), locations
        )
        locations = np.where(
            np.arange(locations.size) % 9 > 4, np.nextafter(locations, 1e3, dtype=np.float32), locations
        )
    value = np.arange(1.0, 50, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 1, 16), np.float32)
    points = np.stack([locations, np.full_like(locations, 0.5)], axis=-1)[None, :, None, None, None]
    weights = np.ones(points.shape[:-1], np.float32)
    out = jax.jit(xla.forward, static_argnames="shapes")(value, points, weights, shapes=shapes)
    expected = np.where((pixels >= 0) & (pixels < 49), pixels + 1, 0)
    np.testing.assert_allclose(out[0, :, 0, 0], expected, atol=0.01)  # a jump would be of 1 or more


def test_float64_stays_float64():
    with jax.enable_x64(True):
        arrays = random_arrays(SMALL, heads=2, channels=4, points=1, dtype=np.float64)
        results = [xla.forward(*arrays[:3], shapes=SMALL), *xla.backward(*arrays, shapes=SMALL)]
    assert {result.dtype for result in results} == {np.dtype("float64")}
