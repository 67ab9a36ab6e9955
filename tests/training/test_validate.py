"""Validation during training, with annotations in place of a model's results."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.data.datasets import open_dataset
from fcclip_jax.data.records import Dataset
from fcclip_jax.inference.truth import read_truth
from fcclip_jax.metrics.panoptic import PanopticCounts
from fcclip_jax.training.validate import Validator, class_map, scores
from tests.data import tiny
from tests.ports import free_address
from tests.training.validating import oracle_validator

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> tiny.Paths:
    return tiny.write(tmp_path_factory.mktemp("data"), 5)


@pytest.fixture(scope="module")
def dataset(paths) -> Dataset:
    images, panoptic_json, panoptic_pngs = paths
    return open_dataset("custom", images=images, panoptic_json=panoptic_json, panoptic_pngs=panoptic_pngs)


@pytest.fixture
def validator(dataset) -> Validator:
    return oracle_validator(dataset)


def kept(share: float) -> dict[str, jax.Array]:
    return {"kept": jnp.float32(share)}


def test_a_perfect_model(validator, dataset):
    found = validator(kept(1), 7)
    # Cats and skies are all found. Each image has a dog segment without pixels, which cannot be found, and a crowd.
    expected = {"pq": 200 / 3, "sq": 200 / 3, "rq": 200 / 3, "pq_things": 50, "pq_stuff": 100, "miou": 100}
    assert found == pytest.approx(expected)
    ((name, picture),) = validator._log.shown.items()
    assert name == ("picture 0, found | annotated", 7)
    height, width = read_truth(dataset[0], dataset.vocabulary).id_map.shape
    assert picture.shape == (height, 2 * width, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(*np.split(picture, 2, axis=1))


def test_damaged_images_are_skipped_and_named(dataset, capsys):
    """A photograph without its last 200 bytes, and a panoptic PNG that is none, of three images."""

    class Damaged:
        name, vocabulary, digest = dataset.name, dataset.vocabulary, dataset.digest

        def __len__(self):
            return len(dataset)

        def __getitem__(self, index):
            record = dataset[index]
            changes = {0: {"image": record.image[:-200]}, 2: {"panoptic": b"no image"}}
            return record._replace(**changes.get(index, {}))

    found = oracle_validator(dataset, Damaged())(kept(1), 7)
    assert found["pq_stuff"] == 100
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped a validation image: ")]
    assert [dataset[i].file_name in line for i, line in zip((0, 2), skipped, strict=True)] == [True, True]


def test_other_weights_other_scores(validator, dataset):
    """Eight columns in ten of every segment match it with a lower IoU; three in ten do not match."""
    found = validator(kept(0.8), 7)
    shares = []
    for index in (0, 2, 4):
        _, columns = np.nonzero(read_truth(dataset[index], dataset.vocabulary).id_map == 70000 + index)
        shares.append(np.mean(columns % 10 < 8))
    assert found["rq"] == pytest.approx(200 / 3) and found["pq_stuff"] == pytest.approx(100 * np.mean(shares))
    truths = [class_map(read_truth(dataset[index], dataset.vocabulary)) for index in (0, 2, 4)]
    pairs = [(t, np.where(np.arange(t.shape[1]) % 10 < 8, np.maximum(t, 0), 0)) for t in truths]
    t, f = (np.concatenate([maps[side][maps[0] >= 0] for maps in pairs]) for side in (0, 1))
    ious = [np.sum((t == c) & (f == c)) / np.sum((t == c) | (f == c)) for c in range(3)]
    assert found["miou"] == pytest.approx(100 * np.mean(ious)) and 50 < found["miou"] < 90
    assert {name: value for name, value in validator(kept(0.3), 8).items() if name != "miou"} == dict.fromkeys(
        ("pq", "sq", "rq", "pq_things", "pq_stuff"), 0.0
    )


def test_two_processes_measure_what_one_does(validator, paths):
    """Each process takes its share of three images; the weights are sharded over both processes."""
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.validating", *map(str, paths), address, str(index), "0.8"],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [output["images"] for output in outputs] == [[0, 4], [2]]
    expected = validator(kept(0.8), 7)
    for output in outputs:
        assert output["scores"] == pytest.approx(expected, rel=1e-12)


def test_the_images_are_spread_evenly(validator):
    assert validator._chosen == [0, 2, 4]


def test_an_annotation_is_read(dataset):
    truth = read_truth(dataset[0], dataset.vocabulary)
    assert truth.areas is None and truth.crowds.tolist() == [False, True, False, False]


def test_what_occurs_nowhere_has_no_score():
    counts = PanopticCounts(np.asarray([1, 0]), np.asarray([1, 0]), np.asarray([0, 0]), np.asarray([0.75, 0.0]))
    found = scores(counts, np.asarray([True, False]))
    assert found == pytest.approx({"pq": 50, "sq": 75, "rq": 100 / 1.5, "pq_things": 50})
    assert scores(PanopticCounts.zeros(2), np.asarray([True, False])) == {}
