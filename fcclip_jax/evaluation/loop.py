"""Segments and scores a dataset: images are decoded before the network needs them, and scored after it.

    decode_ahead ──(place, Example)──> segment ──(place, Segmented)──> score_behind ──(place, Line)──> the log

Each stage is a generator that yields an image's place in the dataset with a value or with the error that stopped it;
later stages pass errors on. Images may overtake each other. Each stage holds only as many images as it works on.
"""

import functools
import itertools
import os
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt8

from fcclip_jax import progress
from fcclip_jax.conventions import IGNORE
from fcclip_jax.evaluation.config import EvalSettings
from fcclip_jax.evaluation.examples import Examples
from fcclip_jax.evaluation.log import EvaluationLog, Line
from fcclip_jax.evaluation.predictions import names_of, save
from fcclip_jax.evaluation.rows import Example
from fcclip_jax.evaluation.scores import image_line, panoptic_counts, sweep_line
from fcclip_jax.inference.engine import Engine
from fcclip_jax.inference.feeding import Failure
from fcclip_jax.inference.results import Result
from fcclip_jax.inference.sweep import SecondClip, Way
from fcclip_jax.metrics.panoptic import PanopticCounts, quality

THREADS = min(os.cpu_count() or 1, 8)
"""Threads that decode and score images. Each holds the maps of one image."""

Images = Iterator[UInt8[np.ndarray, "H W 3"]]
Found = Result | list[Result]
"""The result of one image; a sweep has one for each way to classify masks."""


class Segmented(NamedTuple):
    """An image with its annotation and what the network found in it."""

    example: Example
    found: Found


class Outcome(NamedTuple):
    """The result of all processes."""

    lines: dict[int, Line]
    """The line of each image by its place in the dataset. Skipped images are missing."""
    failed: int
    """The number of images that all processes skipped: unreadable, or too large for the memory."""
    images_per_second: float
    """The speed of this process from its second batch on, decoding and scoring included; 0 if it had only one batch."""


def segment_and_score(
    engine: Engine,
    examples: Examples,
    log: EvaluationLog,
    settings: EvalSettings,
    folder: pathlib.Path,
    ways: Sequence[Way] = (),
    second_clip: SecondClip | None = None,
) -> Outcome:
    """Segments and scores the images that are not in the log. Each process takes its share; all return all lines.

    folder: the folder of predictions, if settings save them.
    ways, second_clip: the sweep's, of which settings have the name, and the CLIP of its second checkpoint.

    Raises:
        OSError: the log or a prediction cannot be written.
        ValueError: the processes do not share the log.
    """
    done = log.read()
    wait_for_all("an evaluation begins")  # no process writes before all have read
    remaining = [place for place in range(len(examples)) if place not in done]
    mine = remaining[jax.process_index() :: jax.process_count()]
    failures: list[str] = []
    total = PanopticCounts.zeros(len(examples.vocabulary.classes))
    speed = Speed(engine.batch_size)
    bar = progress.track(desc=f"evaluating {examples.name}", total=len(mine))
    with bar, log.writer() as write, ThreadPoolExecutor(THREADS) as pool:
        decoded = decode_ahead(examples, mine, pool, ahead=engine.batch_size + 2)
        segmented = segment(engine, decoded, examples, settings, ways, second_clip, speed)
        score = _scorer(examples, settings, folder)
        for place, line in score_behind(segmented, score, pool, behind=max(THREADS, 2 * engine.batch_size)):
            if isinstance(line, Exception):
                failures.append(_failure(examples, place, line))
                progress.write(f"skipped {failures[-1]}")
            else:
                write(line)
                if "panoptic" in line:
                    total = total.plus(panoptic_counts(line, len(total.iou)))
                    bar.set_postfix_str(f"PQ {100 * _mean(quality(total)[:, 0]):.1f}", refresh=False)
            bar.update()
    images_per_second = speed.images_per_second()
    # Gathering also waits until all processes have written their lines.
    failed = int(np.sum(multihost_utils.process_allgather(np.int32(len(failures)))))
    lines = log.read()
    if len(lines) + failed < len(examples):
        raise ValueError(
            f"{folder} has {len(lines)} of {len(examples)} images, and {failed} could not be read: the other processes wrote"
            " elsewhere; give all processes one --workdir that they share"
        )
    return Outcome(lines, failed, images_per_second)


class Speed:
    """Counts images per second from the second batch on, since the first one compiles."""

    def __init__(self, batch_size: int):
        self._batch_size, self._images, self._start = batch_size, 0, 0.0

    def count(self) -> None:
        """Counts one image."""
        self._images += 1
        if self._images == self._batch_size:
            self._start = time.perf_counter()

    def images_per_second(self) -> float:
        """Returns the speed up to now; 0 if there was only one batch."""
        later = self._images - self._batch_size
        return later / (time.perf_counter() - self._start) if later > 0 else 0.0


def decode_ahead(
    examples: Examples, places: Iterable[int], pool: ThreadPoolExecutor, *, ahead: int
) -> Iterator[tuple[int, Example | Failure]]:
    """Yields examples in order; at most `ahead` are decoded or being decoded before they are needed."""
    places = iter(places)
    pending: deque[tuple[int, Future[Example]]] = deque()
    while True:
        for place in itertools.islice(places, ahead - len(pending)):
            pending.append((place, pool.submit(examples.__getitem__, place)))
        if not pending:
            return
        yield _finished(*pending.popleft())


def segment(
    engine: Engine,
    decoded: Iterable[tuple[int, Example | Failure]],
    examples: Examples,
    settings: EvalSettings,
    ways: Sequence[Way],
    second_clip: SecondClip | None,
    speed: Speed,
) -> Iterator[tuple[int, Segmented | Failure]]:
    """Yields each image as soon as the engine has segmented it, in the engine's order."""
    underway: dict[int, tuple[int, Example]] = {}  # by position in the engine's stream
    failed: deque[tuple[int, Failure]] = deque()

    def images() -> Images:
        for place, example in decoded:
            if isinstance(example, Exception):
                failed.append((place, example))
            else:
                underway[next(positions)] = (place, example)
                yield example.image

    def offered(position: int) -> Sequence[int]:
        return classes_in(underway[position][1], len(examples.vocabulary.classes))

    positions = itertools.count()
    if settings.sweep:
        stream = engine.sweep(images(), ways, second_clip=second_clip, overlap_threshold=settings.overlap_threshold)
    else:
        stream = engine.segment(
            images(),
            tasks=settings.tasks,
            overlap_threshold=settings.overlap_threshold,
            void_trust=settings.void_trust,
            semantic_before_resize=settings.semantic_before_resize,
            instance_scores=settings.instance_scores,
            offered=offered if settings.grounding else None,
        )
    for position, found in stream:
        speed.count()
        place, example = underway.pop(position)
        yield place, found if isinstance(found, Exception) else Segmented(example, found)
        while failed:
            yield failed.popleft()
    yield from failed


def score_behind(
    segmented: Iterable[tuple[int, Segmented | Failure]],
    score: Callable[[int, Example, Found], Line],
    pool: ThreadPoolExecutor,
    *,
    behind: int,
) -> Iterator[tuple[int, Line | Failure]]:
    """Yields lines; at most `behind` images wait for theirs while the network continues.

    Raises the errors of `score`: unlike an image that cannot be read, a prediction that cannot be written is not
    skipped.
    """
    pending: deque[tuple[int, Future[Line]]] = deque()
    for place, item in segmented:
        if isinstance(item, Exception):
            yield place, item
            continue
        pending.append((place, pool.submit(score, place, *item)))
        while len(pending) > behind:
            place, future = pending.popleft()
            yield place, future.result()
    for place, future in pending:
        yield place, future.result()


def classes_in(example: Example, classes: int) -> Sequence[int]:
    """Returns the classes that an annotation has, or all if it has none, since a vocabulary cannot be empty."""
    present = set(np.unique(example.semantic).tolist()) - {IGNORE}
    if example.panoptic is not None:
        present |= set(example.panoptic.classes.tolist())
    return sorted(present) or range(classes)


def wait_for_all(what: str) -> None:
    """Waits until all processes have reached this point; `what` names it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _scorer(examples: Examples, settings: EvalSettings, folder: pathlib.Path) -> Callable[[int, Example, Found], Line]:
    if settings.sweep:
        return functools.partial(sweep_line, examples)
    if not settings.save_predictions:
        return functools.partial(image_line, examples)
    names = names_of(examples)

    def score_and_save(place: int, example: Example, result: Result) -> Line:
        line = image_line(examples, place, example, result)
        return {**line, **save(folder, names[place], examples.rows[place].image_id, result)}

    return score_and_save


def _finished(place: int, future: Future[Example]) -> tuple[int, Example | Failure]:
    try:
        return place, future.result()
    except (OSError, ValueError) as error:
        return place, error


def _failure(examples: Examples, place: int, error: Exception) -> str:
    path = str(examples.rows[place].image_path)
    return str(error) if path in str(error) else f"{path}: {error}"


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else 0.0
