"""The sum in one pass has the values and gradients of the plain sum."""

import jax
import jax.numpy as jnp
import numpy as np

from fcclip_jax.training.one_pass import sum_in_one_pass


def term(i, x, weights, ids):
    value = jnp.sum(jnp.sin(weights * x)[ids]) * (i.astype(jnp.float32) + 1)
    return value, {"value": value}


def test_values_and_gradients_by_a_plain_sum():
    rng = np.random.default_rng(0)
    xs, weights = jnp.asarray(rng.standard_normal((3, 4)), jnp.float32), jnp.asarray([1.0, -2.0, 0.5, 3.0])
    ids = jnp.asarray([0, 1, 1, 3])  # closed over, and without a gradient

    def one_pass(xs, weights, ids):
        total, rest = sum_in_one_pass(lambda i, x: term(i, x, weights, ids), xs)
        return 2 * total + 1, rest["value"]

    def plain(xs, weights, ids):
        values = jnp.stack([term(jnp.int32(i), x, weights, ids)[0] for i, x in enumerate(xs)])
        return 2 * jnp.sum(values) + 1, values

    def with_gradients(function):
        return jax.jit(jax.value_and_grad(function, argnums=(0, 1), has_aux=True))(xs, weights, ids)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), with_gradients(one_pass), with_gradients(plain)
    )
    np.testing.assert_allclose(one_pass(xs, weights, ids)[0], plain(xs, weights, ids)[0], rtol=1e-6)
