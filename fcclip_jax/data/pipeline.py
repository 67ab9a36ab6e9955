"""The endless stream of training batches.

Position p of the stream is the image at place p mod n of epoch p // n, shuffled by (seed, epoch) and jittered by (seed, p).
Step t has the positions from t * batch_size, of which process i takes the i-th part. So what a step sees does not depend
on how many processes or workers there are, and the state of the iterator is the number of the step.
"""

import functools
from collections.abc import Collection, Iterator
from typing import NamedTuple

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from fcclip_jax.conventions import NO_SEGMENT
from fcclip_jax.data import decoding, transforms
from fcclip_jax.data.folder import Dataset
from fcclip_jax.structs import Batch, Targets

MAX_UNREADABLE = 0.01
"""The share of a dataset's images that training goes on without."""
_MAX_POSITION = np.iinfo(np.int32).max


class TrainExample(NamedTuple):
    """What one process reads for one step."""

    batch: Batch
    """Its rows of the global batch, as NumPy arrays."""
    skipped: tuple[str, ...]
    """One line for each image that could not be read, and has been replaced by the stream's next."""
    over_budget: int
    """Segments that were left out because an image had more than max_segments."""


class TrainBatches:
    """An endless iterator of TrainExample; `close` stops what it runs in the background."""

    def __init__(self, steps: grain.IterDataset, size: int):
        self._iterator: Iterator[TrainExample] | None = iter(steps)
        self._size = size
        self._unreadable: set[str] = set()

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> TrainExample:
        """Raises ValueError when more than 1 % of the images have turned out to be unreadable."""
        if self._iterator is None:
            raise StopIteration
        example = next(self._iterator)
        self._unreadable.update(example.skipped)
        _check_unreadable(self._unreadable, self._size)
        return example

    def close(self) -> None:
        """Ends the stream. What grain holds goes now: left to the end of the program, its threads complain."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def train_batches(
    source: Dataset,
    *,
    crop: int,
    batch_size: int,
    process_index: int,
    process_count: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    max_segments: int = 128,
) -> TrainBatches:
    """Opens the stream at step `start`.

    crop: pixels of the square that images are cropped or padded to.
    batch_size: over all processes.
    workers: processes that decode; 0 decodes in two threads of this one. Workers hand their batches over in shared
        memory, up to three each: containers may need more of it than the usual 64 MB (docker run --shm-size).
    max_segments: of an image, at most 255; the largest are kept.

    Raises:
        ValueError: the batch cannot be dealt out evenly, or a number is out of range.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} cannot be dealt out evenly to {process_count} processes")
    if not 1 <= max_segments <= NO_SEGMENT:
        raise ValueError(f"max_segments is {max_segments}; it must be from 1 to {NO_SEGMENT}")
    if workers < 0 or start < 0 or seed < 0:
        raise ValueError(f"workers ({workers}), start ({start}) and seed ({seed}) must not be negative")
    if not len(source):
        raise ValueError(f"there are no images in {source.name}")
    stream = _Stream(source, seed, crop, max_segments)
    load = functools.partial(_load_step, stream, batch_size, process_index, process_count)
    steps = grain.MapDataset.range(start, _MAX_POSITION // batch_size).map(load)
    # One element is a whole batch, and grain's default would keep 500.
    steps = steps.to_iter_dataset(grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=2))
    if workers:
        _parse_flags()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        steps = steps.mp_prefetch(options, worker_init_fn=_one_thread)
    return TrainBatches(steps, len(source))


class _Row(NamedTuple):
    image: UInt8[np.ndarray, "H W 3"]
    segment_map: UInt8[np.ndarray, "H W"]
    labels: Int[np.ndarray, " G"]
    skipped: list[str]
    cut: int


class _Stream:
    """Loads any position of the stream."""

    def __init__(self, source: Dataset, seed: int, crop: int, max_segments: int):
        self._source, self._seed, self._crop, self._max_segments = source, seed, crop, max_segments
        self._class_of = {entry.id: index for index, entry in enumerate(source.vocabulary.classes)}

    def load(self, position: int) -> _Row:
        skipped: list[str] = []
        while True:
            epoch, place = divmod(position + len(skipped), len(self._source))
            index = int(_order(self._seed, epoch, len(self._source))[place])
            try:
                record = self._source[index]
                image, segments = decoding.decode(record, self._max_segments)
                break
            except (OSError, ValueError) as error:
                skipped.append(str(error))
                _check_unreadable(skipped, len(self._source))
        jitter = transforms.draw_jitter(np.random.default_rng([self._seed, position]))
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
def _order(seed: int, epoch: int, size: int) -> Int[np.ndarray, " N"]:
    """The shuffled images of an epoch. Three words of seed, where the jitter has two: the draws share nothing."""
    return np.random.default_rng([seed, epoch, 1]).permutation(size)


def _check_unreadable(reasons: Collection[str], size: int) -> None:
    if len(reasons) > MAX_UNREADABLE * size:
        raise ValueError(
            f"{len(reasons)} of {size} images cannot be read, which is more than {MAX_UNREADABLE:.0%}; the first:"
            f" {next(iter(reasons))}"
        )


def _one_thread(worker: int, workers: int) -> None:
    """The workers are the parallelism: OpenCV would start a thread for each core in each of them."""
    cv2.setNumThreads(1)


def _parse_flags() -> None:
    """grain's workers read absl's flags, which a program without absl.app.run has not parsed."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
