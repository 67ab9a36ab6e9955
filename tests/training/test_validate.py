"""Evaluation during training, with an annotation in the place of what a model finds."""

import types
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.checkpoint import Checkpoint, Origin
from fcclip_jax.data.datasets import open_dataset
from fcclip_jax.data.folder import Dataset
from fcclip_jax.inference.results import Result, truth_result
from fcclip_jax.inference.segments import Panoptic
from fcclip_jax.metrics.panoptic import PanopticCounts
from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.training import validate
from fcclip_jax.training.run_log import RunLog
from fcclip_jax.training.validate import Validator, read_truth, scores
from tests.data import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Dataset:
    images, panoptic_json, panoptic_pngs = tiny.write(tmp_path_factory.mktemp("data"), 5)
    return open_dataset("custom", images=images, panoptic_json=panoptic_json, panoptic_pngs=panoptic_pngs)


class Pictures(RunLog):
    """Keeps what it is shown."""

    def __init__(self):
        self.shown = {}

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        self.shown[name, step] = picture


class Oracle:
    """Finds the annotation, the last image first; weights of less than 1 let it lose that share of every segment."""

    def __init__(self, source: Dataset):
        self._source, self._kept = source, 1.0

    def set_weights(self, weights) -> None:
        self._kept = float(weights["kept"])

    def segment(self, images: Iterable[np.ndarray], *, tasks) -> Iterator[tuple[int, Result]]:
        assert tasks == ("panoptic",)
        truths = [read_truth(self._source[i], self._source.vocabulary) for i in range(len(self._source))]
        for index, image in reversed(list(enumerate(images))):
            (truth,) = (t for t in truths if t.id_map.shape == image.shape[:2])
            found = truth_result(truth, image, self._source.vocabulary)
            id_map = np.where(np.arange(image.shape[1]) % 10 < round(10 * self._kept), found.panoptic.id_map, 0)
            yield index, Result(image, found.vocabulary, Panoptic(id_map, found.panoptic.segments), None, None)


@pytest.fixture
def validator(source, monkeypatch) -> Validator:
    monkeypatch.setattr(validate, "full_model", lambda start: None)

    def segmenter(*arguments, **options):
        return types.SimpleNamespace(set_classes=lambda vocabulary: None, engine=Oracle(source))

    monkeypatch.setattr(validate, "Segmenter", segmenter)
    start = Checkpoint(SMALL, {}, source.vocabulary, "", Origin("", ""), None, {})
    return Validator(start, source, Pictures(), images=3, pictures=1, short_side=64, max_side=64)


def kept(share: float) -> dict[str, jax.Array]:
    return {"kept": jnp.float32(share)}


def test_a_perfect_model(validator, source):
    found = validator(kept(1), 7)
    # Cats and skies are all found; dogs have one segment without pixels an image, which nobody finds, and a crowd.
    assert found == pytest.approx({"pq": 200 / 3, "sq": 200 / 3, "rq": 200 / 3, "pq_things": 50, "pq_stuff": 100})
    ((name, picture),) = validator._metrics.shown.items()
    assert name == ("picture 0, found | annotated", 7)
    height, width = read_truth(source[0], source.vocabulary).id_map.shape
    assert picture.shape == (height, 2 * width, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(*np.split(picture, 2, axis=1))


def test_other_weights_other_scores(validator, source):
    """Eight columns in ten of every segment: still the same segments, of a lower IoU; three in ten are none."""
    found = validator(kept(0.8), 7)
    shares = []
    for index in (0, 2, 4):
        _, columns = np.nonzero(read_truth(source[index], source.vocabulary).id_map == 70000 + index)
        shares.append(np.mean(columns % 10 < 8))
    assert found["rq"] == pytest.approx(200 / 3) and found["pq_stuff"] == pytest.approx(100 * np.mean(shares))
    assert set(validator(kept(0.3), 8).values()) == {0.0}


def test_the_images_are_spread_evenly(validator):
    assert validator._chosen == [0, 2, 4]


def test_an_annotation_is_read(source):
    truth = read_truth(source[0], source.vocabulary)
    assert truth.areas is None and truth.crowds.tolist() == [False, True, False, False]


def test_what_occurs_nowhere_has_no_score():
    counts = PanopticCounts(np.asarray([1, 0]), np.asarray([1, 0]), np.asarray([0, 0]), np.asarray([0.75, 0.0]))
    found = scores(counts, np.asarray([True, False]))
    assert found == pytest.approx({"pq": 50, "sq": 75, "rq": 100 / 1.5, "pq_things": 50})
    assert scores(PanopticCounts.zeros(2), np.asarray([True, False])) == {}
