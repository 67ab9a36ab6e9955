"""A TFDS builder over any source: images and annotations as they are, in ArrayRecord shards for random access.

The features are named as those of TFDS' own coco/2017_panoptic, so that one reader reads both. TensorFlow is not needed.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from fcclip_jax.data.folder import Dataset

IMAGES_PER_SHARD = 1500
"""About 250 MB of COCO."""


class FcclipPanoptic(tfds.core.ShardBasedBuilder, skip_registration=True):
    """A dataset in TFDS' sense; `download_and_prepare` writes it in one go, prepare.py shard by shard."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar = {}  # nothing is downloaded; TFDS would look for a list of check sums beside this file

    def __init__(self, *, sources: Mapping[str, Dataset], images_per_shard: int = IMAGES_PER_SHARD, **options: Any):
        """sources: by the name of the split; their vocabularies are one. options: of tfds.core.DatasetBuilder."""
        self._sources, self._images_per_shard = sources, images_per_shard
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        first = next(iter(self._sources.values()))
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

    def shards(self, split: str) -> list[Callable[[], Iterator[tuple[int, dict]]]]:
        """What yields the (key, example) pairs of each shard of a split, in the source's order."""
        source, step = self._sources[split], self._images_per_shard
        return [
            functools.partial(_examples, source, range(start, min(start + step, len(source))))
            for start in range(0, len(source), step)
        ]

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[tuple[int, dict]]]]]:
        return {split: self.shards(split) for split in self._sources}


def _examples(source: Dataset, indices: range) -> Iterator[tuple[int, dict]]:
    class_of = {entry.id: index for index, entry in enumerate(source.vocabulary.classes)}
    for index in indices:
        record = source[index]
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
