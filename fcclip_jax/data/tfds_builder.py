"""A TFDS builder that stores any dataset's records, undecoded, in ArrayRecord shards with random access.

The features have the names of TFDS' own coco/2017_panoptic, so that one reader reads both. TensorFlow is not needed.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from fcclip_jax.data.records import Dataset

IMAGES_PER_SHARD = 1500
"""About 250 MB of COCO."""


class Shard(NamedTuple):
    """The examples of one file."""

    length: int
    examples: Callable[[], Iterator[tuple[int, dict]]]
    """Yields (key, example)."""


class FcclipPanoptic(tfds.core.ShardBasedBuilder, skip_registration=True):
    """A TFDS dataset. `download_and_prepare` writes it at once, `shards.write_shards` shard by shard, resumably."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar = {}  # nothing is downloaded; otherwise TFDS searches for a list of checksums next to this file

    def __init__(self, *, datasets: Mapping[str, Dataset], **options: Any):
        """Describes the datasets.

        datasets: one for each split, by its name, with the same vocabulary.
        options: those of tfds.core.DatasetBuilder.
        """
        self._datasets = datasets
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        first = next(iter(self._datasets.values()))
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            # COCO numbers its images, ADE20K names them.
            "image/id": np.int64 if isinstance(first[0].image_id, int) else tfds.features.Text(),
            "panoptic_image": tfds.features.Image(encoding_format="png"),
            "panoptic_objects": tfds.features.Sequence(
                {
                    "id": np.int64,
                    "label": tfds.features.ClassLabel(num_classes=len(first.vocabulary.classes)),
                    "is_crowd": np.bool_,
                }
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images with panoptic annotations. A label is a class of the vocabulary in the metadata.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(vocabulary=first.vocabulary.to_json()),
        )

    def shards(self, split: str) -> list[Shard]:
        """Returns the shards of a split, in the dataset's order."""
        dataset, step = self._datasets[split], IMAGES_PER_SHARD
        ranges = [range(start, min(start + step, len(dataset))) for start in range(0, len(dataset), step)]
        return [Shard(len(indices), functools.partial(_examples, dataset, indices)) for indices in ranges]

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[tuple[int, dict]]]]]:
        return {split: [shard.examples for shard in self.shards(split)] for split in self._datasets}


def _examples(dataset: Dataset, indices: range) -> Iterator[tuple[int, dict]]:
    class_of = {entry.id: index for index, entry in enumerate(dataset.vocabulary.classes)}
    for index in indices:
        record = dataset[index]
        example = {
            "image": record.image,
            "image/filename": record.file_name,
            "image/id": record.image_id,
            "panoptic_image": record.panoptic,
            "panoptic_objects": [
                {"id": id, "label": class_of[category], "is_crowd": bool(crowd)}
                for id, category, crowd in record.segments.tolist()
            ],
        }
        yield index, example
