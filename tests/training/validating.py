"""A validator whose model finds the annotations, alone and in one of two processes.

python -m tests.training.validating IMAGES JSON PNGS HOST:PORT INDEX SHARE
"""

import dataclasses
import json
import sys
import types
from collections.abc import Iterable, Iterator
from unittest import mock

import jax
import numpy as np

from fcclip_jax.checkpoint import Checkpoint, Origin
from fcclip_jax.data.datasets import open_dataset
from fcclip_jax.data.records import Dataset
from fcclip_jax.inference.results import Result, truth_result
from fcclip_jax.inference.segments import Panoptic
from fcclip_jax.inference.truth import read_truth
from fcclip_jax.models.descriptions import SMALL, DefaultsDescription
from fcclip_jax.training import sharding, validate
from fcclip_jax.training.run_log import RunLog
from fcclip_jax.training.validate import Validator


class Pictures(RunLog):
    """A log that keeps its pictures."""

    def __init__(self):
        self.shown = {}

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        self.shown[name, step] = picture


class Oracle:
    """Finds the annotation, the last image first; weights of less than 1 let it lose that share of every segment."""

    def __init__(self, dataset: Dataset):
        self._dataset, self._kept = dataset, 1.0

    def set_weights(self, weights) -> None:
        self._kept = float(weights["kept"].mean())

    def segment(
        self, images: Iterable[np.ndarray], *, tasks, overlap_threshold, void_trust
    ) -> Iterator[tuple[int, Result]]:
        assert (
            tasks == ("panoptic", "semantic") and overlap_threshold == 0.7 and void_trust["panoptic"] == 0.5
        )  # the checkpoint's
        truths = [read_truth(self._dataset[i], self._dataset.vocabulary) for i in range(len(self._dataset))]
        for index, image in reversed(list(enumerate(images))):
            (truth,) = (t for t in truths if t.id_map.shape == image.shape[:2])
            found = truth_result(truth, image, self._dataset.vocabulary)
            kept = np.arange(image.shape[1]) % 10 < round(10 * self._kept)
            id_map = np.where(kept, found.panoptic.id_map, 0)
            semantic = np.where(kept, np.maximum(validate.class_map(truth), 0), 0)  # what is lost becomes class 0
            yield index, Result(image, found.vocabulary, Panoptic(id_map, found.panoptic.segments), semantic, None)


def oracle_validator(dataset: Dataset, validated: Dataset | None = None) -> Validator:
    """Returns a validator of three images, with the oracle as its model. validated: what it reads instead of the dataset."""
    segmenter = types.SimpleNamespace(set_classes=lambda vocabulary: None, engine=Oracle(dataset))
    description = dataclasses.replace(
        SMALL, defaults=DefaultsDescription(overlap_threshold=0.7, panoptic_void_trust=0.5)
    )
    start = Checkpoint(description, {}, dataset.vocabulary, "", Origin("", ""), None, {})
    with (
        mock.patch.object(validate, "full_model", lambda start: None),
        mock.patch.object(validate, "Segmenter", lambda *arguments, **options: segmenter),
    ):
        return Validator(start, validated or dataset, Pictures(), images=3, pictures=1, short_side=64, max_side=64)


def main(images: str, panoptic_json: str, panoptic_pngs: str, address: str, index: str, share: str) -> None:
    jax.distributed.initialize(address, 2, int(index))
    dataset = open_dataset("custom", images=images, panoptic_json=panoptic_json, panoptic_pngs=panoptic_pngs)
    validator = oracle_validator(dataset)
    mesh = sharding.make_mesh(1, jax.device_count())
    weights = sharding.place_parameters({"kept": np.full(sharding.MIN_SHARDED, share, np.float32)}, mesh)
    assert not weights["kept"].is_fully_addressable
    print(json.dumps({"scores": validator(weights, 7), "images": validator._chosen}))


if __name__ == "__main__":
    main(*sys.argv[1:])
