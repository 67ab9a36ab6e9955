"""Panoptic quality of a model in training, on annotated images at their own size, and pictures of what it finds."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt8
from tqdm import tqdm

from fcclip_jax import caching
from fcclip_jax.checkpoint import Checkpoint
from fcclip_jax.data.decoding import decode_ids, decode_image
from fcclip_jax.data.folder import Dataset, Record
from fcclip_jax.inference.results import Result, truth_result
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.metrics import panoptic
from fcclip_jax.metrics.panoptic import PanopticCounts, Truth
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.training.run_log import RunLog
from fcclip_jax.training.start import full_model


class Validator:
    """Segments the same images again and again, with the parameters that it is given; compiles only the first time."""

    def __init__(
        self,
        start: Checkpoint,
        source: Dataset,
        metrics: RunLog,
        *,
        images: int,
        pictures: int,
        short_side: int,
        max_side: int,
    ):
        """Of the source's images takes `images`, evenly spread; each process its share. The first `pictures` are shown.

        short_side, max_side: what images are resized to, as in `Segmenter`.
        """
        self._source, self._metrics, self._pictures = source, metrics, pictures
        chosen = np.linspace(0, len(source) - 1, min(images, len(source))).round().astype(int)
        self._chosen = chosen[jax.process_index() :: jax.process_count()].tolist()
        segmenter = Segmenter(
            full_model(start),
            start.training_vocabulary,
            fingerprint=start.text_sha256,
            short_side=short_side,
            max_side=max_side,
            cache_dir=caching.cache_dir() / "text",
        )
        segmenter.set_classes(source.vocabulary)
        self._engine = segmenter.engine

    def __call__(self, parameters: Mapping[str, jax.Array], step: int) -> dict[str, float]:
        """pq, sq, rq and pq_things, pq_stuff, in percent; those without a class among the images are left out.

        parameters: the trained ones, by name, on whatever mesh; all processes call it together.
        """
        self._engine.set_weights(on_host(parameters))
        classes = self._source.vocabulary.thing_mask
        total = PanopticCounts.zeros(len(classes))
        # Only of the images on their way through the model.
        records: dict[int, Record] = {}

        def decoded() -> Iterator[UInt8[np.ndarray, "H W 3"]]:
            for index, chosen in enumerate(self._chosen):
                records[index] = self._source[chosen]
                yield decode_image(records[index].image)

        progress = tqdm(total=len(self._chosen), desc="evaluating", unit="image", leave=False, disable=None)
        with progress:
            for index, result in self._engine.segment(decoded(), tasks=("panoptic",)):
                if isinstance(result, Exception):
                    raise result
                truth = read_truth(records.pop(index), self._source.vocabulary)
                found = np.asarray([segment.class_index for segment in result.panoptic.segments], np.int64)
                total = total.plus(panoptic.count(truth, result.panoptic.id_map, found, len(classes)))
                if index < self._pictures:
                    shown = beside(result, truth_result(truth, result.image, self._source.vocabulary))
                    self._metrics.show(f"picture {index}, found | annotated", shown, step)
                progress.update()
        return scores(_over_processes(total), np.asarray(classes))


def scores(counts: PanopticCounts, things: np.ndarray) -> dict[str, float]:
    """In percent."""
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


def read_truth(record: Record, vocabulary: Vocabulary) -> Truth:
    """A record's annotation; areas are those of its map.

    Raises:
        ValueError: the PNG is damaged.
    """
    class_of = {entry.id: index for index, entry in enumerate(vocabulary.classes)}
    ids, categories, crowds = record.segments.T
    classes = np.asarray([class_of[category] for category in categories.tolist()], np.int64)
    return Truth(decode_ids(record.panoptic), ids, classes, crowds.astype(bool))


def beside(left: Result, right: Result) -> UInt8[np.ndarray, "H W 3"]:
    return np.concatenate([np.asarray(result.draw("panoptic")) for result in (left, right)], axis=1)


def on_host(parameters: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Whole arrays, in every process, of arrays that may be spread over all of them."""
    if jax.process_count() == 1:
        return jax.device_get(dict(parameters))
    return {name: multihost_utils.process_allgather(value, tiled=True) for name, value in parameters.items()}


def _over_processes(counts: PanopticCounts) -> PanopticCounts:
    if jax.process_count() == 1:
        return counts
    # Without 64-bit types JAX would round what it gathers: the bytes arrive as they are.
    gathered = [multihost_utils.process_allgather(array.view(np.uint32)) for array in counts]
    return PanopticCounts(
        *(np.asarray(rows).view(array.dtype).sum(axis=0) for rows, array in zip(gathered, counts, strict=True))
    )
