"""A sum over many inputs whose gradient is computed in the same pass as its value."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


def sum_in_one_pass(
    function: Callable[[Int[Array, ""], Array], tuple[Float[Array, ""], PyTree]], xs: Float[Array, "N ..."]
) -> tuple[Float[Array, ""], PyTree]:
    """Returns the sum of `function(i, xs[i])[0]`, and all `function(i, xs[i])[1]`, stacked and without gradient.

    Reverse differentiation of a scan first computes all terms and then all their gradients. In between, it has to keep
    every term's intermediate values, or to compute them again. But the gradient of a term of a sum depends on no other
    term, so it can follow right after the term, up to the sum's own cotangent, which scales it later.

    A gradient has to be taken inside a `jit` that surrounds this function: `jit(grad(f))`, not `grad(jit(f))`.

    function: it may close over values that need gradients.
    """
    steps = jnp.arange(xs.shape[0], dtype=jnp.int32)
    of_term, shared = jax.closure_convert(function, steps[0], xs[0])

    @jax.custom_vjp
    def total(xs, shared):
        def add(total, term):
            value, rest = of_term(*term, *shared)
            return total + value, rest

        return jax.lax.scan(add, jnp.zeros((), jnp.float32), (steps, xs))

    def forward(xs, shared):
        def add(carry, term):
            total, of_shared = carry
            step, x = term
            gradient = jax.value_and_grad(lambda x, shared: of_term(step, x, *shared), argnums=(0, 1), has_aux=True)
            (value, rest), (of_x, share) = gradient(x, shared)
            return (total + value, jax.tree.map(jnp.add, of_shared, share)), (rest, of_x)

        start = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, shared)
        (total, of_shared), (rest, of_xs) = jax.lax.scan(add, start, (steps, xs))
        return (total, rest), (of_xs, of_shared)

    def backward(gradients, cotangent):
        return jax.tree.map(lambda gradient: gradient * cotangent[0].astype(gradient.dtype), gradients)

    total.defvjp(forward, backward)
    return total(xs, shared)
