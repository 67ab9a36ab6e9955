"""The checkpoint inside the package, by its name: segmentation, evaluation and fine-tuning read it."""

import dataclasses

import numpy as np
import pytest
from etils import epath

from fcclip_jax import checkpoint
from fcclip_jax.checkpoint import Checkpoint, Origin, directory, text_fingerprint
from fcclip_jax.evaluation.evaluate import open_model
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import SMALL, DefaultsDescription
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.training.starting_model import starting_point

DEFAULTS = DefaultsDescription(short_side=96, max_side=160)
KNOWN = ("cat", "sofa")


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    description = dataclasses.replace(SMALL, defaults=DEFAULTS)
    parameters = {name: np.asarray(value[...]) for name, value in named_variables(random_model(description)).items()}
    contents = Checkpoint(
        description,
        parameters,
        Vocabulary.from_words(["cat"]),
        text_fingerprint(description, parameters),
        Origin("world", ""),
        None,
        {},
        KNOWN,
    )
    folder = tmp_path_factory.mktemp("package") / "checkpoint"
    checkpoint.save(folder, contents, dtype="float16")
    return epath.Path(folder)


@pytest.fixture(autouse=True)
def installed(packaged, tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "PACKAGED_WORLD", packaged)
    monkeypatch.chdir(tmp_path)


def test_segmentation():
    segmenter = Segmenter.load("world")
    assert segmenter.known_words == KNOWN and segmenter.defaults == DEFAULTS
    assert (segmenter.engine.feeder.short_side, segmenter.engine.feeder.max_side) == (96, 160)
    with pytest.raises(ValueError, match="this model knows 2 words; 'dog' is not one of them"):
        segmenter.set_classes(["cat", "dog"])


def test_evaluation():
    opened = open_model("world")
    assert opened.known_words == KNOWN and opened.description.defaults == DEFAULTS


def test_fine_tuning_keeps_what_belongs_to_the_model():
    vocabulary = Vocabulary.from_words(["sofa", "cat"])
    start = starting_point("world", SMALL, vocabulary, seed=0, void_weight=0.1)
    assert start.training_vocabulary == vocabulary
    assert start.known_words == KNOWN and start.description.defaults == DEFAULTS
