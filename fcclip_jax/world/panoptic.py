"""The miniature world as an annotated dataset, whose records are composed and encoded when they are read."""

import functools
import hashlib

import cv2
import numpy as np

from fcclip_jax.data.records import Record
from fcclip_jax.world import words
from fcclip_jax.world.scenes import Scene, World
from fcclip_jax.world.sprites import KEPT_BACK, TRAINING_DESIGNS

WORLD = "world"
"""The name of the dataset in configurations."""
DESIGNS = {"training": TRAINING_DESIGNS, "kept_back": (KEPT_BACK,)}
"""The designs of the emoji that scenes show; no training shows those that are kept back."""
SPLITS = ("train", "val", "test")
EVALUATED = 1000
"""Scenes of val, and of test."""


class WorldDataset:
    """Scenes of one split; the same arguments give the same records. Splits share neither scenes nor textures."""

    def __init__(self, split: str, images: int, *, seen_only: bool, designs: str = "training", seed: int = 0) -> None:
        """Composes nothing yet.

        seen_only: annotates the seen words alone, which are then the vocabulary; the pixels of other words are void.
        designs: one of DESIGNS.

        Raises:
            ValueError: there is no such split, or no such designs.
            OSError, ValueError: a sprite cannot be read.
        """
        if split not in SPLITS:
            raise ValueError(f"the miniature world has no split {split!r}; choose one of {', '.join(SPLITS)}")
        if designs not in DESIGNS:
            raise ValueError(f"the miniature world has no designs {designs!r}; choose one of {', '.join(DESIGNS)}")
        self.name = f"{WORLD}_{split}" if designs == "training" else f"{WORLD}_{split}_{designs}"
        self.vocabulary = words.vocabulary(seen_only)
        self._images, self._designs = images, DESIGNS[designs]
        self._seed = len(SPLITS) * seed + SPLITS.index(split)
        self._category_of = {entry.name: entry.id for entry in self.vocabulary.classes}
        _world(self._designs, self._seed)  # reads the sprites, before threads need them

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> Record:
        # The dataset holds no sprites, so that a process that loads batches receives it quickly.
        scene = _world(self._designs, self._seed).scene(index)
        return Record(
            image_id=index,
            file_name=file_name(index),
            image=_png(cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)),
            **_annotation(scene, self._category_of),
        )

    @property
    def digest(self) -> str:
        """A checksum of the number of scenes, the vocabulary and the first scene, which changes as scenes do."""
        first = self[0]
        content = f"{len(self)} {self.vocabulary.to_json()}".encode()
        return hashlib.sha256(content + first.image + first.panoptic).hexdigest()


def file_name(index: int) -> str:
    """Returns the name of a scene's image, and of its panoptic PNG."""
    return f"{index:06}.png"


def _annotation(scene: Scene, category_of: dict[str, int]) -> dict:
    """Returns a record's `panoptic` and `segments`: segment s has the id s + 1, and pixels of other words 0."""
    known = [segment for segment, name in enumerate(scene.names) if name in category_of]
    id_of = np.zeros(len(scene.names), np.uint8)
    id_of[known] = np.array(known, np.uint8) + 1
    colours = np.zeros((*scene.segment_map.shape, 3), np.uint8)
    colours[..., 2] = id_of[scene.segment_map]  # OpenCV's order is blue, green, red
    rows = [(segment + 1, category_of[scene.names[segment]], 0) for segment in known]
    return {"panoptic": _png(colours), "segments": np.array(rows, np.int64).reshape(-1, 3)}


def _png(pixels: np.ndarray) -> bytes:
    _, encoded = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return encoded.tobytes()


@functools.lru_cache(maxsize=len(SPLITS))
def _world(designs: tuple[str, ...], seed: int) -> World:
    return World(designs, seed)
