"""The optimiser of contrastive pre-training: which parameter gets which rule, and what a step of each is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.models.building import abstract_model, named_variables
from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.training.contrastive.optim import MATRIX, ContrastiveOptimSettings, learning_share, optimizer
from fcclip_jax.world.clip import clip_description

SQUARE = "clip.text.resblocks.stacked.attn.out_proj.weight"
TALL = "clip.image.head_proj.weight"
WIDE = "clip.image.stages.1.downsample_conv.weight"
IMAGE_BIAS, TEXT_BIAS = "clip.image.head_norm.bias", "clip.text.ln_final.bias"
PLAIN = ContrastiveOptimSettings(weight_decay=0.0, warmup_steps=0, clip_norm=1e9)


def last_update(gradients, settings=PLAIN, parameters=None, count: int = 1):
    """Returns the update of the last of `count` equal steps of a run of 100, by name."""
    parameters = parameters or {name: np.zeros_like(value) for name, value in gradients.items()}
    gradients, parameters = jax.tree.map(jnp.asarray, (gradients, parameters))
    update = optimizer({name: value.shape for name, value in gradients.items()}, settings, 100)
    step = jax.jit(update.update)
    state = update.init(parameters)
    for _ in range(count):
        updates, state = step(gradients, state, parameters)
    return {name: np.asarray(value) for name, value in updates.items()}


def gradient(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("description", [clip_description(), SMALL.clip])
def test_matrices_are_what_multiplies_vectors(description):
    shapes = {name: variable.shape for name, variable in named_variables(abstract_model(description)).items()}
    for name, shape in shapes.items():
        layers = int(".stacked." in name)
        multiplies = len(shape) - layers >= 2 and "conv_dw" not in name and not name.endswith("_embedding")
        assert bool(MATRIX.fullmatch(name)) == multiplies, name
    state = jax.eval_shape(
        optimizer(shapes, PLAIN, 10).init, {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    )
    muon, adam = set(state["muon"][0].mu), set(state["adam"].mu)
    assert muon | adam == shapes.keys() and not muon & adam
    assert muon == {name for name in shapes if MATRIX.fullmatch(name)}


def test_muons_step_is_nearly_orthogonal():
    settings = PLAIN._replace(learning_rate=0.02)
    gradients = {SQUARE: gradient(2, 24, 24), TALL: gradient(32, 16), WIDE: gradient(2, 2, 3, 48)}
    updates = last_update(gradients, settings)
    # The second dimension of a matrix with more outputs than inputs stretches its step by the root of their ratio.
    for name, matrix, stretch in (
        (SQUARE, updates[SQUARE][0], 1.0),
        (TALL, updates[TALL], 1.0),
        (WIDE, updates[WIDE].reshape(12, 48), 2.0),
    ):
        values = np.linalg.svd(matrix, compute_uv=False) / (0.02 * stretch)
        # Five Newton-Schulz steps with Muon's coefficients bring singular values to 0.68 to 1.14, the least ones less near.
        assert 0.6 < np.median(values) < 1.2 and values.max() < 1.2, (name, values)
    # It points downhill.
    assert all(np.sum(updates[name] * value) < 0 for name, value in gradients.items())


def test_stacked_layers_are_orthogonalised_one_by_one():
    stacked = gradient(2, 24, 24)
    stacked[1] *= 100  # the layers' sizes differ
    together = last_update({SQUARE: stacked})[SQUARE]
    for layer in range(2):
        alone = last_update({SQUARE: stacked[layer : layer + 1]})[SQUARE]
        # The same operations, perhaps in another order.
        np.testing.assert_allclose(together[layer], alone[0], atol=1e-6)


def test_the_rates_rise_and_fall():
    share = learning_share(ContrastiveOptimSettings(warmup_steps=10), 1000)
    found = [float(share(jnp.int32(step))) for step in (0, 4, 10, 500, 1000, 2000)]
    # The cosine is still 1 to 1e-3 at step 10.
    assert found[:3] == pytest.approx([0.1, 0.5, 1.0], rel=1e-3)
    assert found[3:] == pytest.approx([0.51, 0.02, 0.02], rel=1e-5)
    assert float(learning_share(PLAIN, 10)(jnp.int32(0))) == 1.0


def test_adams_first_step_is_its_rate_and_the_text_towers_is_slower():
    settings = PLAIN._replace(adam_learning_rate=3e-3, text_multiplier=0.25)
    signs = np.array([1, -1, 1, 1], np.float32)
    updates = last_update({IMAGE_BIAS: 5 * signs, TEXT_BIAS: 5 * signs}, settings)
    np.testing.assert_allclose(updates[IMAGE_BIAS], -3e-3 * signs, rtol=1e-6)
    np.testing.assert_allclose(updates[TEXT_BIAS], -0.25 * 3e-3 * signs, rtol=1e-6)


def test_both_rates_follow_the_schedule_of_their_step():
    settings = PLAIN._replace(warmup_steps=4)
    gradients = {TALL: gradient(32, 16), IMAGE_BIAS: np.ones(4, np.float32)}
    first, second = (last_update(gradients, settings, count=count) for count in (1, 2))
    # Equal gradients: the steps differ by the warm-up and a little of the cosine.
    for name in gradients:
        np.testing.assert_allclose(second[name], 2 * first[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_weights_decay_in_matrices_alone():
    settings = PLAIN._replace(weight_decay=0.5, learning_rate=0.1)
    gradients = {TALL: np.zeros((32, 16), np.float32), IMAGE_BIAS: np.zeros(4, np.float32)}
    updates = last_update(gradients, settings, {name: np.ones_like(value) for name, value in gradients.items()})
    np.testing.assert_allclose(updates[TALL], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates[IMAGE_BIAS], 0)


def test_large_gradients_are_clipped_together():
    """A clipped gradient has a small share beside Adam's memory of a large one."""
    clipped = PLAIN._replace(clip_norm=1.0)
    gradients = {IMAGE_BIAS: np.full(4, 1e3, np.float32), TEXT_BIAS: np.full(4, 1e-5, np.float32)}
    updates = last_update(gradients, clipped)
    # 1e-5 becomes 5e-9 beside Adam's epsilon of 1e-8.
    np.testing.assert_allclose(updates[TEXT_BIAS], -0.3 * 3e-3 / 3, rtol=1e-2)
