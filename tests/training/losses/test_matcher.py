"""Compares assignments with SciPy's, and costs with their definition in PyTorch."""

import functools

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from fcclip_jax.training.losses.matcher import match, matching_costs
from tests.training.losses.cases import SETTINGS, case, slow


@functools.partial(jax.jit, static_argnames="matcher")
def matched(costs: np.ndarray, labels: np.ndarray, matcher: str = "optax"):
    return match(costs, labels, matcher)


@pytest.mark.parametrize("matcher", ["optax", "scipy"])
def test_by_hand(matcher):
    """The second segment costs least with query 0 too, but loses less with another; the empty slot has no query."""
    costs = np.float32([[[1.0, 2.0, -9.0], [5.0, 3.0, -9.0], [6.0, 9.0, -9.0]]])
    np.testing.assert_array_equal(matched(costs, np.int32([[4, 2, -1]]), matcher), [[0, 1, -1]])


@pytest.mark.parametrize(("queries", "slots"), [(20, 7), (7, 7), (7, 12)])
def test_as_scipy(queries, slots):
    """Any number of segments, even more than queries; slots between the real ones may be empty."""
    rng = np.random.default_rng(0)
    batch = 3 * (slots + 1)
    costs = rng.normal(scale=4, size=(batch, queries, slots)).astype(np.float32)
    labels = np.full((batch, slots), -1, np.int32)
    for row in range(batch):
        labels[row, rng.permutation(slots)[: row % (slots + 1)]] = 1
    chosen = {matcher: np.asarray(matched(costs, labels, matcher)) for matcher in ("optax", "scipy")}
    np.testing.assert_array_equal(chosen["optax"], chosen["scipy"])
    for row in range(batch):
        (real,) = np.nonzero(labels[row] >= 0)
        expected = np.full(slots, -1)
        for query, i in zip(*linear_sum_assignment(costs[row][:, real]), strict=True):
            expected[real[i]] = query
        np.testing.assert_array_equal(chosen["optax"][row], expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_ends_whatever_the_costs_are(bad):
    """A run with NaN costs must continue until it reports them."""
    costs = np.full((1, 5, 4), bad, np.float32)
    costs[0, 2] = 1.0
    queries = np.asarray(matched(costs, np.int32([[0, 1, 2, -1]])))[0]
    assert len(set(queries[:3])) == 3 and queries[:3].min() >= 0 and queries[3] == -1


def test_costs_are_their_definition():
    batch = case([4, 0, 7, 12])
    costs = matching_costs(
        batch.prediction,
        batch.targets,
        batch.draws,
        num_points=SETTINGS.num_points,
        class_weight=SETTINGS.class_weight,
        mask_weight=SETTINGS.mask_weight,
        dice_weight=SETTINGS.dice_weight,
    )
    for ours, official in zip(costs, slow(batch).costs, strict=True):
        # Costs are up to 30; sums of 32 float32 numbers in another order.
        np.testing.assert_allclose(ours[:, : official.shape[1]], official, atol=1e-5 * 30)
