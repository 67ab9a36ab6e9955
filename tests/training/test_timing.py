"""Both sides of the benchmark make a step of the same task; no time is judged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.models.descriptions import SMALL, HeadDescription
from fcclip_jax.training import step as train_step
from fcclip_jax.training import timing as train_benchmark
from fcclip_jax.training.timing import Case
from tests.training.tiny_runs import HEAD

CASE = Case(dataclasses.replace(SMALL, head=HeadDescription(**HEAD)), crop=64, batch=2, segments=3, points=64)


def test_ours(monkeypatch):
    """As far as tracing: what is traced here is compiled and run by the tests of the step itself."""
    make = train_step.make_train_step

    def make_traced(*arguments):
        step = make(*arguments)

        def traced(state, *others):
            _, metrics = jax.eval_shape(step, state, *others)
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

        return traced

    monkeypatch.setattr(train_step, "make_train_step", make_traced)
    side = train_benchmark.ours(CASE)
    assert side.step() == 0
    assert side.frozen > side.trainable > 0


def test_theirs():
    pytest.importorskip("transformers", reason="transformers, of which only the benchmark makes use, is not installed")
    side = train_benchmark.theirs(CASE)
    losses = [side.step() for _ in range(2)]
    # Of two outputs: cross-entropy at a weight of 2, binary cross-entropy and dice at 5.
    assert np.all(np.isfinite(losses)) and 10 < losses[0] < 100 and losses[0] != losses[1]


def test_every_segment_is_somewhere():
    found = train_benchmark.segment_map(CASE._replace(crop=512))
    assert found.shape == (2, 512, 512) and all(set(np.unique(row)) == {0, 1, 2} for row in found)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--crop", "100"], "--crop is 100, not a multiple of 32"),
        (["--segments", "200"], "--segments from 1 to 128"),
        (["--torch"], "--torch needs torch and transformers: pip install torch transformers"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(train_benchmark.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        train_benchmark.main(arguments)
    assert end.value.code == 2 and sentence in capsys.readouterr().err
