"""One step: what trains, parts of a batch, recomputed layers, sharding, and how often it is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import SMALL, HeadDescription, ModelDescription
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.structs import Batch, Targets, TextClassifier
from fcclip_jax.training import sharding
from fcclip_jax.training.losses.criterion import LossSettings, LossSums
from fcclip_jax.training.parameters import is_trainable
from fcclip_jax.training.step import (
    StepSettings,
    frozen_dtype,
    initial_state,
    make_train_step,
    skeleton,
    whole_batch,
)
from tests.training.tiny_runs import HEAD

CLASSES, SLOTS, CROP, ROWS = 5, 96, 64, 4
DESCRIPTION = ModelDescription(clip=SMALL.clip, head=HeadDescription(**HEAD))
SETTINGS = StepSettings(losses=LossSettings(num_points=64), compute_dtype="float32", average=0.9)


def batch(segments: list[int], seed: int = 0) -> Batch:
    """Makes images with the given numbers of segments: blocks of 4 x 4 pixels, some of which stay empty."""
    rng = np.random.default_rng(seed)
    labels = np.full((ROWS, SLOTS), -1, np.int32)
    maps = np.full((ROWS, CROP, CROP), 255, np.uint8)
    for row, count in enumerate(segments):
        labels[row, :count] = rng.integers(0, CLASSES, count)
        if count:
            maps[row] = rng.integers(0, count, (CROP // 4, CROP // 4)).repeat(4, 0).repeat(4, 1)
    images = rng.integers(0, 256, (ROWS, CROP, CROP, 3)).astype(np.uint8)
    return Batch(images, Targets(maps, labels), np.arange(ROWS, dtype=np.int32) + ROWS * seed)


class Run:
    """A fresh state, and its step."""

    def __init__(self, settings: StepSettings):
        values = {n: np.asarray(v[...]) for n, v in named_variables(random_model(DESCRIPTION)).items()}
        model = skeleton(DESCRIPTION, settings)
        names = list(named_variables(model))
        self.mesh = sharding.make_mesh(1, 1)
        trained = {n: values[n] for n in names if is_trainable(n, settings.train_trunk)}
        self.frozen = {n: values[n].astype(frozen_dtype(n, settings)) for n in names if n not in trained}
        self.state = initial_state(trained, settings, self.mesh)
        rng = np.random.default_rng(1)
        self.text = TextClassifier(
            rng.standard_normal((CLASSES, 64)).astype(np.float32),
            np.arange(CLASSES, dtype=np.int32),
            np.ones(CLASSES, bool),
            np.asarray(CLASSES, np.int32),
        )
        self.train_step = make_train_step(model, settings, self.mesh)

    def step(self, what: Batch):
        with jax.set_mesh(self.mesh):
            placed = sharding.place_batch(what, self.mesh)
            self.state, metrics = self.train_step(self.state, self.frozen, self.text, placed)
        return jax.device_get(metrics)


@pytest.fixture(scope="module")
def whole() -> Run:
    return Run(SETTINGS)


def test_one_program_for_any_number_of_segments(whole):
    rng = np.random.default_rng(0)
    for seed, counts in enumerate([[0, 0, 0, 0], [80, 1, 0, 17], *rng.integers(0, 81, (18, ROWS)).tolist()]):
        metrics = whole.step(batch(counts, seed))
        assert metrics.segments == sum(counts)
        assert all(np.isfinite(value).all() for value in metrics)
    assert whole.train_step._cache_size() == 1
    assert int(whole.state.step) == 20


def test_parts_of_a_batch_add_up(whole):
    """Computes the same step with accumulation and with recomputation: only rounding and the order of sums differ."""
    first = Run(SETTINGS)
    first.train_step = whole.train_step  # compiled already
    parts = Run(SETTINGS._replace(accumulate=2, remat=True))
    data = batch([3, 0, 7, 12])
    expected, found = first.step(data), parts.step(data)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    for name in ("cross_entropy", "mask", "dice"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4)
    np.testing.assert_allclose(found.gradient_norm, expected.gradient_norm, rtol=1e-4)
    for name, value in first.state.average.items():
        np.testing.assert_allclose(parts.state.average[name], value, atol=1e-6, err_msg=name)


def test_the_moving_average_by_hand(whole):
    """average = 0.9 average + 0.1 parameters after every step, from the initial parameters on."""
    run = Run(SETTINGS)
    run.train_step = whole.train_step  # compiled already
    expected = {name: np.asarray(value, np.float64) for name, value in run.state.parameters.items()}
    start = expected
    for seed in range(4):
        run.step(batch([3, 0, 7, 12], seed))
        for name, value in run.state.parameters.items():
            expected = expected | {name: 0.9 * expected[name] + 0.1 * np.asarray(value, np.float64)}
        for name, value in run.state.average.items():
            # Parameters are about 1: float32's rounding, once a step.
            np.testing.assert_allclose(value, expected[name], rtol=2e-6, atol=1e-7, err_msg=name)
    moved = [np.abs(expected[name] - start[name]).max() for name in expected]
    assert np.median(moved) > 1e-5


def test_frozen_weights_live_in_the_dtype_of_their_use():
    settings = StepSettings(compute_dtype="bfloat16")
    assert frozen_dtype("clip.image.stem_conv.weight", settings) == jnp.bfloat16
    assert frozen_dtype("clip.image.bn1.running_var", settings) == np.float32


def test_counts_of_the_whole_batch_are_those_that_the_criterion_finds():
    """9 segments for 6 queries, none, 2: 6 + 0 + 2 matched of 18 queries, the rest at the void weight."""
    labels = np.full((3, 10), -1, np.int32)
    labels[0, :9] = 1
    labels[2, :2] = 0
    zeros = jnp.zeros(2)
    found = whole_batch(LossSums(*[zeros] * 5), Targets(np.zeros((3, 4, 4), np.uint8), jnp.asarray(labels)), 6, 0.1)
    np.testing.assert_allclose(found.class_weights, [8 + 0.1 * 10], rtol=1e-6)
    np.testing.assert_allclose(found.segments, [11])


def test_a_mesh_of_what_there_is():
    devices = jax.devices()
    assert dict(sharding.make_mesh(-1, 1, devices * 4).shape) == {"data": 4, "fsdp": 1}
    assert dict(sharding.make_mesh(2, 2, devices * 4).shape) == {"data": 2, "fsdp": 2}
    with pytest.raises(ValueError, match="takes 16 devices, and there are 4"):
        sharding.make_mesh(4, 4, devices * 4)
    with pytest.raises(ValueError, match="does not divide the 4 devices"):
        sharding.make_mesh(-1, 3, devices * 4)
    mesh = sharding.make_mesh(2, 2, devices * 4)
    with pytest.raises(ValueError, match="batch_size 6 does not divide over 4 devices; choose a multiple of 4"):
        sharding.check_batch_size(6, 1, mesh)
    with pytest.raises(ValueError, match=r"4 devices x 2 parts \(accumulate\); choose a multiple of 8"):
        sharding.check_batch_size(4, 2, mesh)


def test_large_parameters_are_shared_along_their_longest_side():
    mesh = sharding.make_mesh(1, 2, jax.devices() * 2)
    spec = sharding.parameter_sharding(mesh, (3, 3, 64, 256)).spec
    assert tuple(spec) == (None, None, None, "fsdp")
    assert tuple(sharding.parameter_sharding(mesh, (256,)).spec) == ()
    assert tuple(sharding.parameter_sharding(mesh, (129, 255)).spec) == ()


def test_the_trunk_trains_where_it_should():
    """Its gradient exists, and parameters that do not train are not part of the state."""
    run = Run(SETTINGS._replace(train_trunk=True, average=None, compute_dtype="bfloat16"))
    names = sorted(run.state.parameters)
    before = np.asarray(run.state.parameters["clip.image.stem_conv.weight"])
    metrics = run.step(batch([3, 4, 5, 6]))
    squares = dict(zip(names, metrics.gradient_squares, strict=True))
    assert all(np.isfinite(value) for value in squares.values())
    assert squares["clip.image.stem_conv.weight"] > 0
    after = np.asarray(run.state.parameters["clip.image.stem_conv.weight"])
    assert after.dtype == np.float32
    # A tenth of the learning rate bounds AdamW's first step.
    assert 0 < np.abs(after - before).max() <= 1.1e-5 + 0.05e-5
