"""Images to try a configuration on without its dataset: the miniature world's scenes in the dataset's categories and folders."""

import hashlib
import itertools
from collections.abc import Mapping

import cv2
import numpy as np
from etils import epath

from fcclip_jax.data.datasets import DATASETS, FOLDERS
from fcclip_jax.data.records import Record
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.world.folder import write_folder
from fcclip_jax.world.panoptic import WorldDataset


class ExampleDataset:
    """Scenes whose words stand for a vocabulary's classes, things for things and stuff for stuff, as JPEGs.

    A word stands for the same class in all images, but means something else: a model learns nothing useful.
    """

    def __init__(self, split: str, images: int, vocabulary: Vocabulary) -> None:
        """Composes nothing yet; see WorldDataset."""
        self._scenes = WorldDataset(split, images, seen_only=False)
        self.name, self.vocabulary = self._scenes.name, vocabulary
        self._category_of: dict[int, int] = {}
        for thing in (True, False):
            words, classes = (
                [entry.id for entry in each.classes if entry.is_thing == thing]
                for each in (self._scenes.vocabulary, vocabulary)
            )
            self._category_of.update(zip(words, itertools.cycle(classes), strict=False))

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Record:
        record = self._scenes[index]
        pixels = cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_COLOR)
        segments = record.segments.copy()
        segments[:, 1] = [self._category_of[category] for category in segments[:, 1].tolist()]
        return record._replace(
            file_name=f"{epath.Path(record.file_name).stem}.jpg",
            image=cv2.imencode(".jpg", pixels)[1].tobytes(),
            segments=segments,
        )

    @property
    def digest(self) -> str:
        """A checksum as that of WorldDataset."""
        return hashlib.sha256(f"{self._scenes.digest} {self.vocabulary.to_json()}".encode()).hexdigest()


def write_examples(name: str, images: Mapping[str, int], root: epath.PathLike) -> None:
    """Writes a root that `open_dataset` opens. A repeated call keeps what is there.

    name: one of DATASETS.
    images: the number of images of each split.

    Raises:
        ValueError: the dataset's folder in the root contains other data.
        OSError: the root cannot be written.
    """
    layouts = DATASETS[name]
    datasets = {
        split: ExampleDataset(split, count, Vocabulary.load(layouts[split].vocabulary))
        for split, count in images.items()
    }
    write_folder(datasets, epath.Path(root) / FOLDERS[name], layouts)
