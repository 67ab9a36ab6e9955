"""Compares samples of maps with PyTorch's `grid_sample`, and packing and choosing points with plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from fcclip_jax.training.losses import points
from tests.training.losses.cases import KEPT, OVERSAMPLED, SETTINGS, case, read

# Both sides compute corners and weights in float32, from coordinates of up to 10 cells.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def test_a_map_of_four_cells_by_hand():
    image = jnp.asarray([[1.0, 2.0], [3.0, 5.0]])[None, :, :, None]
    where = jnp.asarray([[0.25, 0.25], [0.75, 0.75], [0.5, 0.5], [0.5, 0.25], [0.0, 0.0], [1.0, 0.25]])
    # Centres of cells, the middle, between two; at a corner three of four neighbours are zeros, at an edge half.
    np.testing.assert_allclose(points.sample(image, where[None])[0, :, 0], [1, 5, 2.75, 1.5, 0.25, 1.0])


def some_points(rng: np.random.Generator, *shape: int) -> np.ndarray:
    found = rng.random((*shape, 2), np.float32)
    found[..., 0, :], found[..., 1, :], found[..., 2, :] = 0, 1, (1, 0)
    return found


def test_sample_is_grid_sample():
    rng = np.random.default_rng(0)
    images, where = rng.normal(size=(3, 7, 10, 4)).astype(np.float32), some_points(rng, 3, 50)
    official = np.stack([read(torch.tensor(images[..., c]), torch.tensor(where)) for c in range(4)], axis=-1)
    np.testing.assert_allclose(points.sample(jnp.asarray(images), jnp.asarray(where)), official, **CLOSE)


def test_an_id_map_reads_as_its_binary_masks():
    rng = np.random.default_rng(1)
    ids, where = rng.integers(0, 6, (2, 9, 5)).astype(np.uint8), some_points(rng, 2, 40)
    ids[ids == 5] = 255
    masks = (ids[..., None] == np.arange(5)).astype(np.float32)
    expected = points.sample(jnp.asarray(masks), jnp.asarray(where))
    found = points.sample_segments(jnp.asarray(ids), jnp.asarray(where), 5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_pack_keeps_the_order_and_counts():
    queries = np.int32([[4, -1, 2], [-1, -1, -1], [0, 7, -1]])
    pairs = points.pack(jnp.asarray(queries))
    assert int(pairs.count) == 4 and len(pairs.rows) % points.CHUNK == 0 and len(pairs.rows) >= 9
    rows = [tuple(map(int, pair)) for pair in zip(*pairs[:3], strict=True)]
    assert rows[:4] == [(0, 0, 4), (0, 2, 2), (2, 0, 0), (2, 1, 7)]
    assert set(rows[4:]) == {(0, 0, 4)}


def test_pairs_read_their_own_masks_and_give_gradients_back():
    """More than one chunk, the last not full, one query in two pairs; none at all."""
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(size=(3, 5, 6, 4)).astype(np.float32))
    ids = jnp.asarray(rng.integers(0, 4, (3, 10, 12)).astype(np.uint8))
    where, weight = some_points(rng, 16, 20), rng.normal(size=(16, 20)).astype(np.float32)

    @jax.jit
    def found(logits, pairs):
        def weighted(logits):
            values = points.sample_pairs(logits, pairs, jnp.asarray(where))
            return jnp.sum(values * weight), values

        (_, values), gradient = jax.value_and_grad(weighted, has_aux=True)(logits)
        return values, gradient, points.pair_targets(ids, pairs, jnp.asarray(where))

    for chosen in ([[3, 3, 0, 1, -1], [-1] * 5, [0, 1, 2, 3, 3]], [[-1] * 5] * 3):
        pairs = points.pack(jnp.asarray(np.int32(chosen)))
        values, gradient, targets = found(logits, pairs)
        count = int(pairs.count)
        expected, inside = np.zeros((16, 20), np.float32), np.zeros((16, 20), np.float32)
        tensor = torch.tensor(np.asarray(logits), requires_grad=True)
        total = 0 * tensor.sum()
        for i in range(count):
            at = torch.tensor(where[i][None])
            value = read(tensor[int(pairs.rows[i]), :, :, int(pairs.queries[i])][None], at)[0]
            mask = np.asarray(ids[pairs.rows[i]] == pairs.slots[i].astype(np.uint8)).astype(np.float32)
            expected[i], inside[i] = value.detach(), read(torch.tensor(mask)[None], at)[0]
            total = total + (value * torch.tensor(weight[i])).sum()
        total.backward()
        np.testing.assert_allclose(values, expected, **CLOSE)
        np.testing.assert_allclose(targets, inside, **CLOSE)
        np.testing.assert_allclose(gradient, tensor.grad, **CLOSE)


def test_chosen_points_are_the_least_certain():
    batch = case([3, 0, 2])
    queries = np.full((3, 12), -1, np.int32)
    queries[0, :3], queries[2, :2] = [5, 0, 7], [1, 8]
    pairs = points.pack(jnp.asarray(queries))
    chosen = points.choose_points(
        batch.prediction.mask_logits,
        pairs,
        batch.draws,
        num_points=SETTINGS.num_points,
        oversampled=OVERSAMPLED,
        kept=KEPT,
    )
    for i in range(5):
        row, slot, query = (int(x[i]) for x in pairs[:3])
        candidates = np.asarray(batch.draws.candidates[row, slot])
        mask = torch.tensor(np.asarray(batch.prediction.mask_logits[row, :, :, query]))
        certainty = read(mask[None], torch.tensor(candidates)[None])[0].abs().numpy()
        np.testing.assert_array_equal(chosen[i, :KEPT], candidates[certainty.argsort()[:KEPT]])
        np.testing.assert_array_equal(chosen[i, KEPT:], batch.draws.others[row, slot])


def test_random_draws_belong_to_the_image_wherever_it_is():
    def draws(positions: list[int], output: int) -> points.RandomDraws:
        return points.RandomDraws(jax.random.key(3), jnp.asarray(positions, jnp.int32), jnp.int32(output))

    def all_of(draws: points.RandomDraws, row: int, slot: int) -> np.ndarray:
        at = jnp.int32(row), jnp.int32(slot)
        parts = draws.matcher(at[0], 40), draws.oversampled(*at, 40), draws.uniform(*at, 40)
        return np.stack(parts)

    here = all_of(draws([7, 9, 2**31 - 1], 4), 1, 5)
    assert here.dtype == np.float32 and here.min() >= 0 and here.max() < 1 and 0.4 < here.mean() < 0.6
    np.testing.assert_array_equal(here, all_of(draws([9], 4), 0, 5))
    others = [all_of(draws([8], 4), 0, 5), all_of(draws([9], 3), 0, 5), all_of(draws([9], 4), 0, 6)]
    different = np.concatenate([here, others[0], others[1], others[2][1:]])
    assert len(np.unique(different, axis=0)) == 11
