"""Compares the whole loss and its gradients with its slow definition, on every kind of batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.structs import Prediction, Targets
from fcclip_jax.training.losses import criterion
from fcclip_jax.training.losses.criterion import LossSums, mean_losses, output_losses, weighted_total
from fcclip_jax.training.losses.points import RandomDraws
from tests.training.losses.cases import SETTINGS, Case, case, slow

# Sums of a few hundred float32 numbers in another order.
CLOSE = {"rtol": 2e-5, "atol": 1e-6}


@jax.jit
def loss_and_gradients(case: Case):
    def loss(prediction: Prediction):
        sums = output_losses(prediction, case.targets, case.draws, SETTINGS)
        losses = mean_losses(sums)
        return weighted_total(losses, SETTINGS), (losses, sums)

    return jax.value_and_grad(loss, has_aux=True)(case.prediction)


def test_mask_losses_by_hand():
    """Logits of 0 are a probability of a half everywhere."""
    mask, dice = criterion.mask_losses(jnp.zeros((2, 4)), jnp.asarray([[1.0, 1, 0, 0], [0.0, 0, 0, 0]]))
    np.testing.assert_allclose(mask, np.log(2) * np.ones(2), rtol=1e-6)
    np.testing.assert_allclose(dice, [1 - 3 / 5, 1 - 1 / 3], rtol=1e-6)


def test_class_sums_by_hand():
    """Two queries, one of them matched: the other should predict void, and weighs a tenth."""
    logits = jnp.log(jnp.asarray([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]]))
    total, weights = criterion.class_sums(logits, jnp.asarray([[-1, 0]]), jnp.asarray([[-1, 1]]), 0.1)
    np.testing.assert_allclose(total, -np.log(0.25) - 0.1 * np.log(0.6), rtol=1e-6)
    np.testing.assert_allclose(weights, 1.1, rtol=1e-6)


@pytest.mark.parametrize("segments", [[4, 0, 7, 12], [0, 0, 0, 0], [1, 9, 12, 2]])
def test_as_the_slow_definition(segments):
    """Images without segments, with emptied segments (the last of each image), and with more segments than queries."""
    batch = case(segments, seed=sum(segments))
    (_, (losses, sums)), gradients = loss_and_gradients(batch)
    official = slow(batch)
    np.testing.assert_allclose(losses, official.losses, **CLOSE)
    np.testing.assert_allclose(gradients.mask_logits, official.mask_gradient, **CLOSE)
    np.testing.assert_allclose(gradients.class_logits, official.class_gradient, **CLOSE)
    assert float(sums.segments) == sum(segments)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((losses, gradients)))


def test_sums_add_up_over_devices():
    """Four images on two devices, in one order or another: the same draws for each, sums that add up to the same."""
    batch = case([4, 0, 7, 12])
    positions = jnp.asarray([40, 41, 42, 43], jnp.int32)

    @jax.jit
    def sums_of(prediction: Prediction, targets: Targets, positions: jax.Array) -> LossSums:
        draws = RandomDraws(jax.random.key(0), positions, jnp.int32(1))
        return output_losses(prediction, targets, draws, SETTINGS)

    def total(*halves: list[int]) -> LossSums:
        whole = batch.prediction, batch.targets, positions
        parts = [sums_of(*jax.tree.map(lambda x, half=half: x[np.int32(half)], whole)) for half in halves]
        return jax.tree.map(jnp.add, *parts)

    np.testing.assert_allclose(total([0, 1], [2, 3]), total([2, 0], [3, 1]), **CLOSE)


def test_one_program_for_any_number_of_segments():
    """Segments 0 to 80 in 128 slots: compiled once, all finite, and a query for every segment."""
    compiled = 0

    def loss(mask_logits: jax.Array, class_logits: jax.Array, targets: Targets):
        nonlocal compiled
        compiled += 1
        draws = RandomDraws(jax.random.key(0), jnp.asarray([5], jnp.int32), jnp.int32(0))
        sums = output_losses(Prediction(mask_logits, class_logits), targets, draws, SETTINGS)
        return weighted_total(mean_losses(sums), SETTINGS), sums

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    for count in range(81):
        batch = case([count], slots=128, queries=100, seed=count)
        (total, sums), gradients = step(*batch.prediction, batch.targets)
        assert np.isfinite(total) and all(np.isfinite(x).all() for x in gradients)
        assert int(sums.segments) == count
        np.testing.assert_allclose(sums.class_weights, count + 0.1 * (100 - count), rtol=1e-5)
        assert np.any(gradients[0]) == (count > 0)
    assert compiled == step._cache_size() == 1
