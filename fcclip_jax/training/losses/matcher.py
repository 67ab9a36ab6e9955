"""Matches queries to segments: the assignment of least cost (matcher.py of the official code)."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int
from scipy.optimize import linear_sum_assignment

from fcclip_jax.structs import Prediction, Targets
from fcclip_jax.training.losses.points import PointDraws, sample, sample_segments

Matcher = Literal["optax", "scipy"]

LARGE_COST = 1e6
"""Replaces costs that are not finite: the assignment would not terminate on NaNs."""


def match(costs: Float[Array, "B Q G"], labels: Int[Array, "B G"], matcher: Matcher = "optax") -> Int[Array, "B G"]:
    """Returns the query of each slot; -1 in empty slots (label -1), and where an image has more segments than queries.

    matcher: "optax" runs on the device, "scipy" on the host.
    """
    costs = jnp.nan_to_num(costs, nan=LARGE_COST, posinf=LARGE_COST, neginf=-LARGE_COST)
    if matcher == "scipy":
        shape = jax.ShapeDtypeStruct(labels.shape, np.int32)
        return jax.pure_callback(_match_on_host, shape, costs, labels, vmap_method="expand_dims")
    return jax.vmap(_match_on_device)(costs, labels)


def _match_on_device(costs: Float[Array, "Q G"], labels: Int[Array, " G"]) -> Int[Array, " G"]:
    """Matches one image.

    Each slot also has a column of its own, which an empty slot takes at once: among queries that all cost it the same,
    it would visit those that other slots have, one after the other. A segment takes its column only if no query is left.
    """
    queries, slots = costs.shape
    real = labels >= 0
    # Just above all costs: a larger number would take digits from them.
    high = jnp.max(jnp.abs(costs)) + 1
    costs = jnp.where(real[None], costs, 2 * high)
    # From the last slot's to the first's, so that of equal segments the last gets no query, as by SciPy.
    own = jnp.where(jnp.eye(slots, dtype=bool), jnp.where(real, high, 0)[None], 2 * high)[::-1]
    costs = jnp.concatenate([costs, own])
    found, of_slot = optax.assignment.hungarian_algorithm(costs)
    chosen = jnp.zeros(slots, jnp.int32).at[of_slot].set(found.astype(jnp.int32))
    return jnp.where(real & (chosen < queries), chosen, -1)


def _match_on_host(costs: Float[Array, "*B Q G"], labels: Int[Array, "*B G"]) -> np.ndarray:
    costs, labels = np.asarray(costs), np.asarray(labels)
    chosen = np.full(labels.shape, -1, np.int32)
    for row in np.ndindex(labels.shape[:-1]):
        (real,) = np.nonzero(labels[row] >= 0)
        queries, segments = linear_sum_assignment(costs[row][:, real])
        chosen[row][real[segments]] = queries
    return chosen


def matching_costs(
    prediction: Prediction,
    targets: Targets,
    draws: PointDraws,
    *,
    num_points: int,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
) -> Float[Array, "B Q G"]:
    """Returns the cost of matching each query to each slot; meaningless in empty slots. No gradient passes.

    Masks are compared at `num_points` uniform points, which all queries and segments of an image share.
    """
    mask_logits, class_logits = map(lax.stop_gradient, prediction)
    batch, _, _, count = mask_logits.shape
    slots = targets.labels.shape[1]
    rows = jnp.arange(batch, dtype=jnp.int32)
    points = jax.vmap(lambda row: draws.matcher(row, num_points))(rows)
    logits = sample(mask_logits, points)
    masks = sample_segments(targets.segment_map, points, slots)

    # Over the points, BCE is the sum of softplus(x) - x t, and dice's numerator that of sigmoid(x) t: one product.
    probs = jax.nn.sigmoid(logits)
    both = jnp.concatenate([logits, probs], axis=-1)
    products = jnp.einsum("bsq,bsg->bqg", both, masks, precision=lax.Precision.HIGHEST)
    cross_entropy = (jnp.sum(jax.nn.softplus(logits), axis=1)[..., None] - products[:, :count]) / num_points
    areas = jnp.sum(probs, axis=1)[..., None] + jnp.sum(masks, axis=1)[:, None, :]
    dice = 1 - (2 * products[:, count:] + 1) / (areas + 1)

    class_probs = jax.nn.softmax(class_logits, axis=-1)
    of_label = jnp.take_along_axis(class_probs, jnp.maximum(targets.labels, 0)[:, None, :], axis=-1)
    return mask_weight * cross_entropy - class_weight * of_label + dice_weight * dice
