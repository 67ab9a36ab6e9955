"""Panoptic quality and mIoU of a model in training, on annotated images at their own size, with pictures of its segments."""

import itertools
import sys
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int, UInt8

from fcclip_jax import caching, progress
from fcclip_jax.checkpoint import Checkpoint
from fcclip_jax.data.decoding import decode_image
from fcclip_jax.data.records import Dataset
from fcclip_jax.inference.results import Result, truth_result
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.inference.truth import read_truth
from fcclip_jax.metrics import panoptic, semantic
from fcclip_jax.metrics.panoptic import PanopticCounts, Truth
from fcclip_jax.training.run_log import RunLog
from fcclip_jax.training.starting_model import full_model

NO_CLASS = -1


class Validator:
    """Measures any parameters on the same images; compiles only the first time."""

    def __init__(
        self,
        start: Checkpoint,
        dataset: Dataset,
        log: RunLog,
        *,
        images: int,
        pictures: int,
        short_side: int,
        max_side: int,
    ):
        """Chooses the images, evenly spread over the dataset. Each process segments its share.

        images: their number over all processes. pictures: the number of each process's images that are logged as
        pictures.
        short_side, max_side: the size that images are resized to, as in `Segmenter`.
        """
        self._dataset, self._log, self._pictures = dataset, log, pictures
        self._defaults = start.description.defaults
        chosen = np.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().astype(int)
        self._chosen = chosen[jax.process_index() :: jax.process_count()].tolist()
        segmenter = Segmenter(
            full_model(start),
            start.training_vocabulary,
            fingerprint=start.text_sha256,
            known_words=start.known_words,
            short_side=short_side,
            max_side=max_side,
            precision="float32",  # as in an evaluation, so that both give the same scores
            cache_dir=caching.cache_dir() / "text",
        )
        segmenter.set_classes(dataset.vocabulary)
        self._engine = segmenter.engine

    def __call__(self, parameters: Mapping[str, jax.Array], step: int) -> dict[str, float]:
        """Returns pq, sq, rq, pq_things, pq_stuff and miou in percent; scores without a class among the images are omitted.

        Images that cannot be read are reported and skipped.

        All processes call it together.

        parameters: the trained ones, by name, on any mesh.
        """
        self._engine.set_weights(on_host(parameters))
        classes = self._dataset.vocabulary.thing_mask
        total = PanopticCounts.zeros(len(classes))
        confusion = np.zeros((len(classes) + 1, len(classes) + 1), np.int64)
        # The annotations of the images that are in the pipeline.
        truths: dict[int, Truth] = {}

        def decoded() -> Iterator[UInt8[np.ndarray, "H W 3"]]:
            positions = itertools.count()
            for chosen in self._chosen:
                try:
                    image, truth = self._read(chosen)
                except (OSError, ValueError) as error:
                    progress.write(f"skipped a validation image: {error}", file=sys.stderr)
                    bar.update()
                    continue
                truths[next(positions)] = truth
                yield image

        bar = progress.track(desc="evaluating", total=len(self._chosen), leave=False)
        with bar:
            for index, result in self._engine.segment(
                decoded(),
                tasks=("panoptic", "semantic"),
                overlap_threshold=self._defaults.overlap_threshold,
                void_trust=self._defaults.void_trust,
            ):
                if isinstance(result, Exception):
                    raise result
                truth = truths.pop(index)
                found = np.asarray([segment.class_index for segment in result.panoptic.segments], np.int64)
                total = total.plus(panoptic.count(truth, result.panoptic.id_map, found, len(classes)))
                annotated = class_map(truth)
                confusion += semantic.count(annotated, np.asarray(result.semantic), len(classes), NO_CLASS)
                if index < self._pictures:
                    shown = beside(result, truth_result(truth, result.image, self._dataset.vocabulary))
                    self._log.show(f"picture {index}, found | annotated", shown, step)
                bar.update()
        found = scores(PanopticCounts(*map(_over_processes, total)), np.asarray(classes))
        miou = semantic.scores(_over_processes(confusion)).miou
        return found if np.isnan(miou) else {**found, "miou": 100 * miou}

    def _read(self, chosen: int) -> tuple[UInt8[np.ndarray, "H W 3"], Truth]:
        record = self._dataset[chosen]
        try:
            return decode_image(record.image), read_truth(record, self._dataset.vocabulary)
        except ValueError as error:
            raise ValueError(f"{record.file_name}: {error}") from error


def class_map(truth: Truth) -> Int[np.ndarray, "H W"]:
    """Returns the class of every pixel, crowds included; NO_CLASS where nothing is annotated."""
    found = np.full(truth.id_map.shape, NO_CLASS)
    for id, index in zip(truth.ids.tolist(), truth.classes.tolist(), strict=True):
        found[truth.id_map == id] = index
    return found


def scores(counts: PanopticCounts, things: np.ndarray) -> dict[str, float]:
    """Returns panoptic quality in percent, over all classes and over things and stuff alone."""
    found = {}
    for suffix, among in (("", things | True), ("_things", things), ("_stuff", ~things)):
        try:
            average = panoptic.average(counts, among)
        except ValueError:
            continue
        found[f"pq{suffix}"] = 100 * average.pq
        if not suffix:
            found |= {"sq": 100 * average.sq, "rq": 100 * average.rq}
    return found


def beside(left: Result, right: Result) -> UInt8[np.ndarray, "H W 3"]:
    """Draws two panoptic results side by side."""
    return np.concatenate([np.asarray(result.draw("panoptic")) for result in (left, right)], axis=1)


def on_host(parameters: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Gathers arrays that may be sharded over all processes: every process gets them whole."""
    if jax.process_count() == 1:
        return jax.device_get(dict(parameters))
    return {name: multihost_utils.process_allgather(value, tiled=True) for name, value in parameters.items()}


def _over_processes(counts: np.ndarray) -> np.ndarray:
    """Sums an array of 64-bit numbers over all processes."""
    if jax.process_count() == 1:
        return counts
    # Without 64-bit types JAX would round what it gathers, so it gathers the bytes.
    gathered = multihost_utils.process_allgather(counts.view(np.uint32))
    return np.asarray(gathered).view(counts.dtype).sum(axis=0)
