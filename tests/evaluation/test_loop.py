"""Tests the pipeline of decoding, segmenting and scoring: order, errors, memory and speed."""

import dataclasses
import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fcclip_jax.evaluation.config import EvalSettings
from fcclip_jax.evaluation.examples import Examples, open_semantic
from fcclip_jax.evaluation.log import EvaluationLog
from fcclip_jax.evaluation.loop import Speed, decode_ahead, score_behind, segment_and_score
from fcclip_jax.evaluation.rows import Example
from fcclip_jax.inference.results import Result
from fcclip_jax.text.vocabulary import Vocabulary
from tests.evaluation import layouts
from tests.evaluation.injected import Perfect, perfect

IMAGES = 40
UNREADABLE = 7


@dataclasses.dataclass(frozen=True)
class Watched(Examples):
    """Counts the images that are in memory; one image cannot be read."""

    alive: weakref.WeakSet = dataclasses.field(default_factory=weakref.WeakSet)
    decoded: list[int] = dataclasses.field(default_factory=list)

    def __getitem__(self, index: int) -> Example:
        if index == UNREADABLE:
            raise ValueError("damaged")
        example = super().__getitem__(index)
        image = np.ndarray.view(example.image, Pixels)
        self.alive.add(image)
        self.decoded.append(index)
        return example._replace(image=image)


class Pixels(np.ndarray):
    """An array that can be held by its identity."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class Shuffling(Perfect):
    """Yields images three by three, each three in reverse order; fails on every tenth."""

    batch_size = 3

    def __init__(self, examples: Examples):
        self._vocabulary = examples.vocabulary
        self._examples = examples

    def segment(self, images, *, tasks, **_):
        batch = []
        for position, image in enumerate(images):
            batch.append((position, image))
            if len(batch) == self.batch_size:
                yield from self._results(batch, tasks)
                batch = []
        yield from self._results(batch, tasks)

    def _results(self, batch, tasks):
        while batch:
            position, image = batch.pop()
            place = position + (position >= UNREADABLE)
            result = perfect(Examples.__getitem__(self._examples, place), self._vocabulary, tasks)
            yield position, ValueError("no bucket") if place % 10 == 9 else dataclasses.replace(result, image=image)


@pytest.fixture
def examples(tmp_path) -> Watched:
    classes = {f"{index:03}": index % 2 for index in range(IMAGES)}
    found = open_semantic(*layouts.write_photos(tmp_path, classes), Vocabulary.from_words(["cat", "sofa"]))
    return Watched(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})


def test_images_overtake_each_other_and_errors_are_counted(examples, tmp_path):
    outcome = segment_and_score(
        Shuffling(examples), examples, EvaluationLog(tmp_path / "run", {}), EvalSettings(tasks=("semantic",)), tmp_path
    )
    lost = {UNREADABLE, 9, 19, 29, 39}
    assert outcome.failed == len(lost) and list(outcome.lines) == [i for i in range(IMAGES) if i not in lost]
    for index, line in outcome.lines.items():
        assert line["image_id"] == f"{index:03}" and line["semantic"] == [[index % 2, index % 2, 48]]
    assert outcome.images_per_second > 0


def test_only_images_in_the_pipeline_are_in_memory(examples, tmp_path, monkeypatch):
    most = 0

    class Counting(Shuffling):
        def _results(self, batch, tasks):
            nonlocal most
            for item in super()._results(batch, tasks):
                most = max(most, len(examples.alive))
                yield item

    monkeypatch.setattr("fcclip_jax.evaluation.loop.THREADS", 2)
    segment_and_score(
        Counting(examples), examples, EvaluationLog(tmp_path / "run", {}), EvalSettings(tasks=("semantic",)), tmp_path
    )
    # Three in the engine, five decoded ahead, six waiting for scores, and three inside a stage.
    assert 3 <= most <= 3 + 5 + 6 + 3
    gc.collect()
    assert not examples.alive


def test_decoding_keeps_order_and_its_distance(examples):
    with ThreadPoolExecutor(2) as pool:
        stream = decode_ahead(examples, range(2, IMAGES), pool, ahead=4)
        assert next(stream)[0] == 2
        while len(examples.decoded) < 4:
            time.sleep(0.01)
        assert sorted(examples.decoded) == [2, 3, 4, 5]
        rest = list(stream)
    assert [place for place, _ in rest] == list(range(3, IMAGES))
    assert [place for place, item in rest if isinstance(item, Exception)] == [UNREADABLE]


def test_a_prediction_that_cannot_be_written_stops_the_evaluation(examples):
    def score(place, example, found):
        if place == 5:
            raise OSError("disk full")
        return {"index": place}

    vocabulary = examples.vocabulary
    example = examples[0]
    result = Result(example.image, vocabulary, None, np.zeros(example.image.shape[:2], np.int64), None)
    with ThreadPoolExecutor(2) as pool:
        segmented = [(place, (example, result)) for place in range(10)]
        segmented[1] = (1, ValueError("damaged"))
        stream = score_behind(iter(segmented), score, pool, behind=3)
        found = []
        with pytest.raises(OSError, match="disk full"):
            for place, _ in stream:
                found.append(place)
    assert sorted(found) == [0, 1, 2, 3, 4]


def test_speed_begins_with_the_second_batch(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    speed = Speed(2)
    for seconds in (50, 10, 1, 1, 2):  # the first batch compiles
        now += seconds
        speed.count()
        assert (speed.images_per_second() == 0) == (now <= 160)
    assert speed.images_per_second() == 3 / 4
