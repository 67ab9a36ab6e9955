"""What a segmentation holds, on the host, in the words of its vocabulary."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from scipy import ndimage

from fcclip_jax.conventions import ceil_div
from fcclip_jax.inference.postprocess import Instances, Postprocessed, Segments, unpack_mask
from fcclip_jax.text.vocabulary import Vocabulary, VocabularyClass

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, upper ends excluded."""


class Segment(NamedTuple):
    """One region of a panoptic map."""

    id: int
    """Its value in the map, from 1."""
    class_index: int
    """Its class, counted from 0 in the vocabulary."""
    entry: VocabularyClass
    score: float
    area: int
    """Pixels."""
    box: Box

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def is_thing(self) -> bool:
        return self.entry.is_thing


class Panoptic(NamedTuple):
    """Every pixel belongs to one segment, or to void."""

    id_map: Int[np.ndarray, "H W"]
    """Segment ids; 0 is void."""
    segments: list[Segment]


class Instance(NamedTuple):
    """One thing; instances may overlap."""

    class_index: int
    """Its class, counted from 0 in the vocabulary."""
    entry: VocabularyClass
    score: float
    area: int
    """Pixels."""
    box: Box
    mask_bits: UInt8[np.ndarray, "W H8"]
    """The mask, column by column, 8 rows to a byte, the first row in the lowest bit."""
    height: int
    """Pixels of the image."""

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """Its pixels, at the image's size; unpacked anew at each access."""
        return unpack_mask(self.mask_bits, (self.height, self.mask_bits.shape[0]))


@dataclasses.dataclass(frozen=True)
class Result:
    """The segmentation of one image, at the image's size.

    `panoptic`, `semantic` and `instances` raise a ValueError if they were not among the tasks.
    """

    image: UInt8[np.ndarray, "H W 3"]
    vocabulary: Vocabulary
    _panoptic: Panoptic | None
    _semantic: Int[np.ndarray, "H W"] | None
    _instances: list[Instance] | None

    @property
    def panoptic(self) -> Panoptic:
        """Segments and their map."""
        return self._required(self._panoptic, "panoptic")

    @property
    def semantic(self) -> Int[np.ndarray, "H W"]:
        """The class of every pixel, counted from 0 in the vocabulary."""
        return self._required(self._semantic, "semantic")

    @property
    def instances(self) -> list[Instance]:
        """Things, best score first, at most 100."""
        return self._required(self._instances, "instances")

    def draw(self, task: str | None = None, *, threshold: float = 0.5) -> Image.Image:
        """The image with its segments coloured and named.

        task: what to draw; by default panoptic, semantic or instances, the first that there is.
        threshold: the least score of an instance that is drawn.
        """
        from fcclip_jax.inference import (
            visualize,  # OpenCV and matplotlib take a second to import: only drawing needs them
        )

        return visualize.draw(self, task or self.tasks[0], threshold=threshold)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What there is of panoptic, semantic, instances."""
        held = {"panoptic": self._panoptic, "semantic": self._semantic, "instances": self._instances}
        return tuple(task for task, value in held.items() if value is not None)

    def _required(self, value, task):
        if value is None:
            raise ValueError(f"this result holds {', '.join(self.tasks)}; segment with {task!r} among the tasks")
        return value


def make_result(image: UInt8[np.ndarray, "H W 3"], vocabulary: Vocabulary, output: Postprocessed) -> Result:
    """The result of one image from its part of a batch's output (host arrays without their batch axis)."""
    height, width = image.shape[:2]
    panoptic = semantic = instances = None
    if output.panoptic is not None:
        panoptic = _panoptic(output.panoptic[:height, :width], output.segments, vocabulary)
    if output.semantic is not None:
        semantic = np.array(output.semantic[:height, :width])
    if output.instances is not None:
        instances = _instances(output.instances, output.mask_bits[:, :width, : ceil_div(height, 8)], height, vocabulary)
    return Result(image, vocabulary, panoptic, semantic, instances)


def _panoptic(id_map: Int[np.ndarray, "H W"], segments: Segments, vocabulary: Vocabulary) -> Panoptic:
    id_map = np.array(id_map)
    rows = []
    for index, found in enumerate(ndimage.find_objects(id_map, int(segments.count))):
        class_index = int(segments.class_ids[index])
        y, x = found
        box = (x.start, y.start, x.stop, y.stop)
        score, area = float(segments.scores[index]), int(segments.areas[index])
        rows.append(Segment(index + 1, class_index, vocabulary.classes[class_index], score, area, box))
    return Panoptic(id_map, rows)


def _instances(
    instances: Instances, mask_bits: UInt8[np.ndarray, "N W H8"], height: int, vocabulary: Vocabulary
) -> list[Instance]:
    found = []
    for i in range(int(instances.count)):
        area = int(instances.areas[i])
        if not area:
            continue
        class_index, score = int(instances.class_ids[i]), float(instances.scores[i])
        box = tuple(int(side) for side in instances.boxes[i])
        entry = vocabulary.classes[class_index]
        found.append(Instance(class_index, entry, score, area, box, mask_bits[i].copy(), height))
    return found
