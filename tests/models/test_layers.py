"""Stacks of equal modules in both forms, and functions of single positions by rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcclip_jax.models.building import name_before_unroll, named_variables, split_for_inference, without_text
from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.models.layers import MOST_PARTS, ROWS, Stack, by_rows, gelu
from fcclip_jax.models.precision import FLOAT32
from fcclip_jax.models.random_weights import random_model


class Scaled(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.scale = nnx.Param(jax.random.normal(rngs.params(), (3,)))

    def __call__(self, x: jax.Array, shift: jax.Array) -> jax.Array:
        return x * self.scale[...] + shift


@pytest.mark.parametrize("length", [0, 1, 4])
def test_an_unrolled_stack_is_the_scan(length):
    stack = Stack(Scaled, length, rngs=nnx.Rngs(0))
    x, shift = jnp.asarray([1.0, 2.0, 3.0]), jnp.float32(0.5)
    expected = x
    for scale in stack.stacked.scale[...] if length else ():
        expected = expected * scale + shift
    scanned = stack(x, shift)
    stack.unroll()
    assert len(stack.modules) == length and stack.stacked is None
    for result in (scanned, stack(x, shift)):
        np.testing.assert_allclose(result, expected, rtol=1e-6)  # compiled and not, they round differently


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_weights_for_inference_have_their_former_names_and_values(platform):
    model = without_text(random_model(SMALL))
    before = {name: np.asarray(variable[...]) for name, variable in named_variables(model).items()}
    found = dict.fromkeys(before, 0)
    for path, variable in nnx.to_flat_state(split_for_inference(model, FLOAT32, platform)[1]):
        name, index = name_before_unroll(".".join(map(str, path)))
        np.testing.assert_array_equal(variable[...], before[name] if index is None else before[name][index])
        assert index is None or platform == "cpu"
        found[name] += 1
    blocks = "clip.image.stages.2.blocks.stacked.fc1.weight"
    assert found[blocks] == (len(before[blocks]) if platform == "cpu" else 1)
    assert min(found.values()) == 1
    # The model itself is as it was.
    assert named_variables(model).keys() == before.keys()


@pytest.mark.parametrize("shape", [(1, 1), (ROWS,), (ROWS + 1,), (2, 3, 1000), (40 * ROWS,)])
def test_rows_are_all_computed_and_in_order(shape):
    x = jnp.arange(2 * np.prod(shape), dtype=jnp.float32).reshape(*shape, 2)
    sizes = []

    def sum_and_double(rows: jax.Array) -> jax.Array:
        sizes.append(rows.shape[0])
        return jnp.stack([rows.sum(axis=-1), 2 * rows[:, 0], 2 * rows[:, 1]], axis=-1)

    result = jax.jit(lambda x: by_rows(sum_and_double, x))(x)
    np.testing.assert_array_equal(result, np.concatenate([np.sum(x, axis=-1, keepdims=True), 2 * x], axis=-1))
    count = np.prod(shape)
    some = sizes[: min(-(-count // ROWS), MOST_PARTS)]
    assert sum(some) == count and max(some) - min(some) < len(some)
    assert max(some) <= ROWS or len(some) == MOST_PARTS


def test_gelu_has_the_value_and_gradient_of_the_exact_formula():
    with jax.enable_x64(True):
        x = jnp.linspace(-9.0, 9.0, 181)

        def plain(x):
            return jax.nn.gelu(x, approximate=False)

        np.testing.assert_array_equal(gelu(x), plain(x))
        found, expected = (jax.grad(lambda x, f=f: jnp.sum(f(x) * x))(x) for f in (gelu, plain))
        # Values up to 18; the rounding of 1 + erf remains where the gradient vanishes.
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14)


def test_the_gradient_of_gelu_is_computed_in_float32():
    x = jnp.linspace(-3, 3, 61).astype(jnp.bfloat16)
    found = jax.vmap(jax.grad(gelu))(x)
    assert found.dtype == jnp.bfloat16
    expected = jax.vmap(jax.grad(gelu))(x.astype(jnp.float32))
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))  # rounded once
