"""Both sides of the timing make a step of the same task; times are not checked."""

import dataclasses
import math
import re

import numpy as np
import pytest

from fcclip_jax.models.building import abstract_model, named_variables
from fcclip_jax.models.descriptions import SMALL, HeadDescription
from fcclip_jax.training import timing
from fcclip_jax.training.timing import Case
from tests.training.tiny_runs import HEAD

CASE = Case(dataclasses.replace(SMALL, head=HeadDescription(**HEAD)), crop=64, batch=2, segments=3, points=64)


def test_ours(monkeypatch, capsys):
    """Runs a real step in a separate process, as the command times it."""
    # `compare` sets these for its processes; monkeypatch restores them.
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    timing.compare(CASE, [timing.OURS], repeats=1)
    (line,) = capsys.readouterr().out.splitlines()
    number = r"([\d.]+)"
    found = re.search(
        rf"{number} s a step, +{number} GiB; first step {number} s, {number} GiB, loss {number};"
        rf" {number} M trainable, {number} M frozen",
        line,
    )
    seconds, memory, first_seconds, first_memory, loss, trainable, frozen = map(float, found.groups())
    assert 0 < seconds < first_seconds and 0 < memory < 64 and 0 < first_memory < 64
    # Of two outputs: cross-entropy at a weight of 2, binary cross-entropy and dice at 5.
    assert 10 < loss < 100
    shapes = {name: variable.shape for name, variable in named_variables(abstract_model(CASE.description)).items()}
    head = sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("clip."))
    trunk = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("clip.image."))
    assert trainable == pytest.approx(head / 1e6, abs=0.051)
    assert frozen == pytest.approx(trunk / 1e6, abs=0.051)


def test_theirs():
    pytest.importorskip("transformers", reason="transformers, which only the timing needs, is not installed")
    side = timing.theirs(CASE)
    losses = [side.step() for _ in range(2)]
    # Of two outputs: cross-entropy at a weight of 2, binary cross-entropy and dice at 5.
    assert np.all(np.isfinite(losses)) and 10 < losses[0] < 100 and losses[0] != losses[1]


def test_every_segment_is_somewhere():
    found = timing.segment_map(CASE._replace(crop=512))
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
    monkeypatch.setattr(timing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        timing.main(arguments)
    assert end.value.code == 2 and sentence in capsys.readouterr().err
