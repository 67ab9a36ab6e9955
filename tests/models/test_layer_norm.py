"""Layer normalisation, whose gradient is written by hand, against JAX's own gradient of the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.models.layers import layer_norm

EPS = 1e-5


def formula(x, weight, bias):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    rows = (1,) * (x.ndim - 1)
    return (x - mean) / jnp.sqrt(variance + EPS) * weight.reshape(*rows, -1) + bias.reshape(*rows, -1)


def inputs(shape: tuple[int, ...], dtype):
    rng = np.random.default_rng(0)
    x = 3 + 2 * rng.standard_normal(shape)
    x[..., 0, :] = 0.5  # a constant row, whose variance is 0
    weight, bias = rng.standard_normal((2, shape[-1]))
    return [jnp.asarray(value, dtype) for value in (x, weight, bias, rng.standard_normal(shape))]


@pytest.mark.parametrize("shape", [(3, 6), (2, 3, 4, 6)])
def test_value_and_gradient_in_float64(shape):
    with jax.enable_x64(True):
        *values, of_output = inputs(shape, jnp.float64)
        found, pull = jax.vjp(lambda *values: layer_norm(*values, EPS), *values)
        expected, pull_expected = jax.vjp(formula, *values)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        for name, ours, theirs in zip(("x", "weight", "bias"), pull(of_output), pull_expected(of_output), strict=True):
            # A constant row has gradients of 1 / sqrt(EPS), about 300.
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10, err_msg=name)


def test_bfloat16_inputs_are_normalised_in_float32():
    x, weight, bias, of_output = inputs((40, 64), jnp.bfloat16)
    weight, bias = weight.astype(jnp.float32), bias.astype(jnp.float32)
    found, pull = jax.vjp(lambda *values: layer_norm(*values, EPS), x, weight, bias)
    assert found.dtype == jnp.bfloat16
    wide = x.astype(jnp.float32)
    expected, pull_expected = jax.vjp(formula, wide, weight, bias)
    grads, expected_grads = pull(of_output), pull_expected(of_output.astype(jnp.float32))
    assert [grad.dtype for grad in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
    # Only the result is rounded, to 8 bits.
    for ours, theirs in ((found, expected), (grads[0], expected_grads[0])):
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, rtol=2**-8, atol=1e-4)
    for ours, theirs in zip(grads[1:], expected_grads[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
