"""The endless stream of training batches.

Position p of the stream is the image at place p mod n of epoch p // n, shuffled by (seed, epoch) and jittered by (seed, p).
Step t has the positions from t * batch_size on; process i takes the i-th part of them. A step's images therefore do not
depend on the number of processes or workers, and the iterator's whole state is the number of the step.
"""

import functools
import signal
from collections.abc import Callable, Collection, Iterator
from typing import Generic, NamedTuple, TypeVar

import cv2
import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from fcclip_jax.conventions import NO_SEGMENT
from fcclip_jax.data import decoding, transforms
from fcclip_jax.data.records import Dataset
from fcclip_jax.structs import Batch, Targets

MAX_UNREADABLE = 0.01
"""The largest share of unreadable images in a dataset; above it, training stops."""
Step = TypeVar("Step")
"""One process's part of one step."""
_MAX_POSITION = np.iinfo(np.int32).max


class TrainExample(NamedTuple):
    """One process's part of one step."""

    batch: Batch
    """The process's rows of the global batch, as NumPy arrays."""
    skipped: tuple[str, ...]
    """One line for each image that could not be read, and was replaced by the stream's next."""
    over_budget: int
    """The number of segments left out because an image had more than max_segments."""


class StepStream(Generic[Step]):
    """An endless iterator of steps; `close` stops its background threads and processes."""

    def __init__(self, steps: grain.IterDataset, size: int, *, shared: bool):
        """size: the number of images in the dataset. shared: whether steps lie in shared memory, which worker processes use."""
        self._iterator: Iterator[Step] | None = iter(steps)
        self._size, self._shared = size, shared
        self._unreadable: set[str] = set()

    def __iter__(self) -> "StepStream[Step]":
        return self

    def __next__(self) -> Step:
        """Raises ValueError if more than 1 % of the images have been unreadable so far."""
        if self._iterator is None:
            raise StopIteration
        step = next(self._iterator)
        if self._shared:
            # Shared memory is released when nothing refers to it; a step may live until Python ends, which is too late.
            step = jax.tree.map(lambda leaf: np.array(leaf) if isinstance(leaf, np.ndarray) else leaf, step)
        self._unreadable.update(step.skipped)
        _check_unreadable(self._unreadable, self._size)
        return step

    def close(self) -> None:
        """Ends the stream. Without it, grain's threads print errors when the program ends."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def open_stream(load: Callable[[int], Step], start: int, stop: int, workers: int, size: int) -> StepStream[Step]:
    """Loads the steps from `start` on in the background, in `workers` processes or, without any, in two threads.

    load: returns a step, which has the field `skipped`, by its number.
    size: the number of images in the dataset.
    """
    steps = grain.MapDataset.range(start, stop).map(load)
    # One element is a whole batch; grain's default would buffer 500.
    steps = steps.to_iter_dataset(grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=2))
    if workers:
        _parse_flags()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        steps = steps.mp_prefetch(options, worker_init_fn=_prepare_worker)
    return StepStream(steps, size, shared=workers > 0)


def train_batches(
    dataset: Dataset,
    *,
    crop: int,
    batch_size: int,
    process_index: int,
    process_count: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    max_segments: int = 128,
    jitter: tuple[float, float] = transforms.SCALES,
) -> StepStream[TrainExample]:
    """Opens the stream at step `start`.

    crop: pixels of the square that images are cropped or padded to.
    batch_size: the number of images over all processes.
    workers: processes that decode; 0 decodes in two threads of this process. Workers pass their batches through shared
        memory, up to three each: containers may need more of it than the usual 64 MB (docker run --shm-size).
    max_segments: segments per image, at most 255; the largest are kept.
    jitter: the range of the scales that images are resized by, relative to the crop.

    Raises:
        ValueError: the processes cannot share the batch evenly, or a number is out of range.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size is {batch_size}; it must be a positive multiple of the {process_count} processes")
    if not 1 <= max_segments <= NO_SEGMENT:
        raise ValueError(f"max_segments is {max_segments}; it must be from 1 to {NO_SEGMENT}")
    if workers < 0 or start < 0 or seed < 0:
        raise ValueError(f"workers ({workers}), start ({start}) and seed ({seed}) must be at least 0")
    if not len(dataset):
        raise ValueError(f"the dataset {dataset.name} has no images")
    stream = _Stream(dataset, seed, crop, max_segments, jitter)
    load = functools.partial(_load_step, stream, batch_size, process_index, process_count)
    return open_stream(load, start, _MAX_POSITION // batch_size, workers, len(dataset))


class _Row(NamedTuple):
    image: UInt8[np.ndarray, "H W 3"]
    segment_map: UInt8[np.ndarray, "H W"]
    labels: Int[np.ndarray, " G"]
    skipped: list[str]
    cut: int


class _Stream:
    """Loads any position of the stream."""

    def __init__(self, dataset: Dataset, seed: int, crop: int, max_segments: int, scales: tuple[float, float]):
        self._dataset, self._seed, self._crop, self._max_segments = dataset, seed, crop, max_segments
        self._scales = scales
        self._class_of = {entry.id: index for index, entry in enumerate(dataset.vocabulary.classes)}

    def load(self, position: int) -> _Row:
        skipped: list[str] = []
        while True:
            epoch, place = divmod(position + len(skipped), len(self._dataset))
            index = int(order(self._seed, epoch, len(self._dataset))[place])
            try:
                record = self._dataset[index]
                image, segments = decoding.decode(record, self._max_segments)
                break
            except (OSError, ValueError) as error:
                skipped.append(str(error))
                _check_unreadable(skipped, len(self._dataset))
        jitter = transforms.draw_jitter(np.random.default_rng([self._seed, position]), self._scales)
        labels = np.full(self._max_segments, -1, np.int32)
        labels[: len(segments.categories)] = [self._class_of[category] for category in segments.categories.tolist()]
        return _Row(
            transforms.jitter_image(image, jitter, self._crop),
            transforms.jitter_map(segments.segment_map, jitter, self._crop),
            labels,
            skipped,
            segments.cut,
        )


def _load_step(stream: _Stream, batch_size: int, process_index: int, process_count: int, step: int) -> TrainExample:
    local = batch_size // process_count
    first = step * batch_size + process_index * local
    positions = np.arange(first, first + local, dtype=np.int32)
    rows = [stream.load(position) for position in positions.tolist()]
    batch = Batch(
        images=np.stack([row.image for row in rows]),
        targets=Targets(np.stack([row.segment_map for row in rows]), np.stack([row.labels for row in rows])),
        positions=positions,
    )
    skipped = tuple(reason for row in rows for reason in row.skipped)
    return TrainExample(batch, skipped, sum(row.cut for row in rows))


@functools.lru_cache(maxsize=2)
def order(seed: int, epoch: int, size: int) -> Int[np.ndarray, " N"]:
    """Returns an epoch's order of images. The seed has three numbers, the jitter's two: the draws are independent."""
    return np.random.default_rng([seed, epoch, 1]).permutation(size)


def _check_unreadable(reasons: Collection[str], size: int) -> None:
    if len(reasons) > MAX_UNREADABLE * size:
        raise ValueError(
            f"{len(reasons)} of {size} images cannot be read, which is more than {MAX_UNREADABLE:.0%}; repair the dataset."
            f" The first: {next(iter(reasons))}"
        )


def _prepare_worker(worker: int, workers: int) -> None:
    """Limits a worker to one thread: by default OpenCV starts one per core in every worker."""
    cv2.setNumThreads(1)
    # The terminal sends Ctrl-C to all processes; the run saves its state before it ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _parse_flags() -> None:
    """Marks absl's flags as parsed, which grain's workers require, in programs that do not use absl.app.run."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
