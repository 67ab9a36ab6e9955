"""A benchmark from its first image to its last: each is segmented, held against its annotation, and logged."""

import os
import pathlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import UInt8
from tqdm import tqdm

from fcclip_jax.conventions import IGNORE, OVERLAP_THRESHOLD
from fcclip_jax.evaluation.benchmarks import Example, Examples
from fcclip_jax.evaluation.log import EvaluationLog, Line
from fcclip_jax.evaluation.predictions import names_of, save
from fcclip_jax.evaluation.scores import image_line, panoptic_counts
from fcclip_jax.evaluation.sweeps import SWEEPS, sweep_line
from fcclip_jax.inference.engine import Engine
from fcclip_jax.inference.results import Result
from fcclip_jax.metrics.panoptic import PanopticCounts, quality

THREADS = min(os.cpu_count() or 1, 8)
"""That decode images and score them: each holds the maps of one."""


class EvalSettings(NamedTuple):
    tasks: tuple[str, ...] = ("panoptic", "semantic", "instances")
    overlap_threshold: float = OVERLAP_THRESHOLD
    """The least share of its own mask that a panoptic segment must keep."""
    semantic_before_resize: bool = False
    """Class scores are formed at the network's size, as the official code has it where only semantic maps are asked for."""
    grounding: bool = False
    """Offers each image only the classes that its annotation has (the paper's table 7)."""
    save_predictions: bool = False
    sweep: str | None = None
    """PQ alone, of every way to classify masks that this one of evaluation.sweep's SWEEPS names."""


class Outcome(NamedTuple):
    lines: dict[int, Line]
    """Of every image by its place in the data set; those that cannot be read are missing."""
    failed: int
    """Images that could not be read, by all processes."""
    images_per_second: float
    """Of this process, decoding and scores included, from its second batch on; 0 where there was none."""


def evaluate(
    engine: Engine,
    examples: Examples,
    log: EvaluationLog,
    settings: EvalSettings,
    folder: pathlib.Path,
    second_trunk: nnx.Module | None = None,
) -> Outcome:
    """Segments the images that the log lacks, each process its share; every process gets all lines.

    folder: for predictions, if they are to be saved.
    second_trunk: for the sweep that compares two checkpoints' classifiers.

    Raises:
        OSError: the log or a prediction cannot be written.
        ValueError: the processes do not share the log.
    """
    done = log.read()
    wait_for_all("an evaluation begins")  # nobody writes before everybody has read
    left = [index for index in range(len(examples)) if index not in done]
    mine = left[jax.process_index() :: jax.process_count()]
    failures: list[str] = []
    total = PanopticCounts.zeros(len(examples.vocabulary.classes))
    arrivals: list[float] = []
    progress = tqdm(total=len(mine), desc=f"evaluating {examples.name}", unit="image", disable=None)
    with progress, log.writer() as write:
        for index, line in _lines(engine, examples, mine, settings, folder, second_trunk, arrivals):
            if isinstance(line, Exception):
                failures.append(_failure(examples, index, line))
                tqdm.write(f"skipped {failures[-1]}")
            else:
                write(line)
                if "panoptic" in line:
                    total = total.plus(panoptic_counts(line, len(total.iou)))
                    progress.set_postfix_str(f"PQ {100 * _mean(quality(total)[:, 0]):.1f}", refresh=False)
            progress.update()
    end = time.perf_counter()
    failed = int(
        np.sum(multihost_utils.process_allgather(np.int32(len(failures))))
    )  # nobody goes on before all are done
    lines = log.read()
    if len(lines) + failed < len(examples):
        raise ValueError(
            f"{len(lines)} of {len(examples)} images are in {folder} now, and {failed} could not be read: the others are"
            " elsewhere; give all processes one --workdir that they share"
        )
    later = len(arrivals) - engine.batch_size
    speed = later / (end - arrivals[engine.batch_size - 1]) if later > 0 else 0.0
    return Outcome(lines, failed, speed)


def _lines(
    engine: Engine,
    examples: Examples,
    places: Sequence[int],
    settings: EvalSettings,
    folder: pathlib.Path,
    second_trunk: nnx.Module | None,
    arrivals: list[float],
) -> Iterator[tuple[int, Line | OSError | ValueError]]:
    """Images are decoded ahead of the computation and scored behind it, in threads.

    arrivals: gets the time when the engine was done with each.
    """
    underway: list[tuple[int, Example | None]] = []  # by their position in the segmenter's stream
    failed: deque[tuple[int, OSError | ValueError]] = deque()
    scored: deque[tuple[int, Future[Line]]] = deque()
    names = names_of(examples) if settings.save_predictions else []

    def pixels() -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        ahead: deque[tuple[int, Future[Example]]] = deque()
        waiting = iter(places)
        while True:
            while len(ahead) < engine.batch_size + 2 and (place := next(waiting, None)) is not None:
                ahead.append((place, pool.submit(examples.__getitem__, place)))
            if not ahead:
                return
            place, future = ahead.popleft()
            try:
                example = future.result()
            except (OSError, ValueError) as error:
                failed.append((place, error))
                continue
            underway.append((place, example))
            yield example.image

    def offered(position: int) -> Sequence[int]:
        return classes_in(underway[position][1], len(examples.vocabulary.classes))

    def score(place: int, example: Example, result: Result | list[Result]) -> Line:
        if isinstance(result, list):
            return sweep_line(place, examples, example.panoptic, result)
        line = image_line(place, examples, example, result)
        if not settings.save_predictions:
            return line
        return {**line, **save(folder, names[place], examples.image_ids[place], result)}

    with ThreadPoolExecutor(THREADS) as pool:
        if settings.sweep:
            ways = SWEEPS[settings.sweep].ways(engine.ensemble)
            stream = engine.sweep(
                pixels(), ways, second_trunk=second_trunk, overlap_threshold=settings.overlap_threshold
            )
        else:
            stream = engine.segment(
                pixels(),
                tasks=settings.tasks,
                overlap_threshold=settings.overlap_threshold,
                semantic_before_resize=settings.semantic_before_resize,
                offered=offered if settings.grounding else None,
            )
        for position, result in stream:
            arrivals.append(time.perf_counter())
            place, example = underway[position]
            underway[position] = (place, None)  # its pixels are not needed any more
            if isinstance(result, Exception):
                failed.append((place, result))
            else:
                scored.append((place, pool.submit(score, place, example, result)))
            while failed:
                yield failed.popleft()
            while len(scored) > max(THREADS, 2 * engine.batch_size):
                place, future = scored.popleft()
                yield place, future.result()
        for place, future in scored:
            yield place, future.result()
        yield from failed


def classes_in(example: Example, classes: int) -> Sequence[int]:
    """The classes that an annotation has; all of them if it has none, for a vocabulary is never empty."""
    present = set(np.unique(example.semantic).tolist()) - {IGNORE}
    if example.panoptic is not None:
        present |= set(example.panoptic.classes.tolist())
    return sorted(present) or range(classes)


def _failure(examples: Examples, index: int, error: Exception) -> str:
    path = str(examples.image_paths[index])
    return str(error) if path in str(error) else f"{path}: {error}"


def _mean(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else 0.0


def wait_for_all(what: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
