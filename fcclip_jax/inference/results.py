"""The result of segmenting one image, on the host, with the class names of its vocabulary."""

import dataclasses
import io
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from scipy import ndimage

from fcclip_jax.conventions import INSTANCE_THRESHOLD, ceil_div
from fcclip_jax.inference.postprocess import Instances, Postprocessed, Segments
from fcclip_jax.inference.segments import Instance, Panoptic, Segment
from fcclip_jax.metrics.panoptic import Truth
from fcclip_jax.structs import checked
from fcclip_jax.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """The segmentation of one image, at the image's size.

    `panoptic`, `semantic` and `instances` raise a ValueError if they were not among the tasks.
    """

    image: UInt8[np.ndarray, "H W 3"]
    """The caller's own, who may write to it: it shares no memory with what was segmented."""
    vocabulary: Vocabulary
    _panoptic: Panoptic | None
    _semantic: Int[np.ndarray, "H W"] | None
    _instances: list[Instance] | None
    instance_threshold: float = INSTANCE_THRESHOLD
    """The minimum score of an instance that `draw` draws by default: the checkpoint's."""

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

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks whose results it holds."""
        held = {"panoptic": self._panoptic, "semantic": self._semantic, "instances": self._instances}
        return tuple(task for task, value in held.items() if value is not None)

    def draw(self, task: str | None = None, *, threshold: float | None = None) -> Image.Image:
        """Returns the image with its segments coloured and named; the plain image if nothing was found.

        task: panoptic, semantic or instances; by default the first of these that the result holds.
        threshold: the minimum score of an instance that is drawn; by default `instance_threshold`.

        Raises:
            ValueError: the result does not hold the task, or the task does not exist.
        """
        # OpenCV and matplotlib take a second to import, and only drawing needs them.
        from fcclip_jax.inference import visualize

        task = task or self.tasks[0]
        if task == "panoptic":
            return visualize.draw_panoptic(self.image, self.vocabulary, self.panoptic)
        if task == "semantic":
            return visualize.draw_semantic(self.image, self.vocabulary, self.semantic)
        if task == "instances":
            least = self.instance_threshold if threshold is None else threshold
            return visualize.draw_instances(self.image, self.vocabulary, self.instances, least)
        raise ValueError(f"no task {task!r} to draw; name panoptic, semantic or instances")

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        counts = []
        if self._panoptic is not None:
            counts.append(f"{len(self._panoptic.segments)} segments")
        if self._semantic is not None:
            counts.append(f"a semantic map of {len(np.unique(self._semantic))} classes")
        if self._instances is not None:
            counts.append(f"{len(self._instances)} instances")
        return f"Result({width}x{height}: {', '.join(counts)})"

    def _repr_png_(self) -> bytes:
        """Shows the drawing in notebooks."""
        buffer = io.BytesIO()
        self.draw().save(buffer, "PNG")
        return buffer.getvalue()

    def _required(self, value: Any, task: str) -> Any:
        if value is None:
            raise ValueError(f"this result holds {', '.join(self.tasks)}; segment with {task!r} among the tasks")
        return value


def make_result(
    image: UInt8[np.ndarray, "H W 3"],
    vocabulary: Vocabulary,
    output: Postprocessed,
    *,
    instance_threshold: float = INSTANCE_THRESHOLD,
) -> Result:
    """Returns the result of one image from its part of a batch's output: arrays on the host, without the batch axis."""
    checked(output)
    height, width = image.shape[:2]
    panoptic = semantic = instances = None
    if output.panoptic is not None and output.segments is not None:
        panoptic = _panoptic(np.array(output.panoptic[:height, :width]), output.segments, vocabulary)
    if output.semantic is not None:
        semantic = np.array(output.semantic[:height, :width])
    if output.instances is not None and output.mask_bits is not None:
        mask_bits = np.asarray(output.mask_bits[:, :width, : ceil_div(height, 8)])
        instances = _instances(output.instances, mask_bits, height, vocabulary)
    return Result(image, vocabulary, panoptic, semantic, instances, instance_threshold)


def truth_result(truth: Truth, image: UInt8[np.ndarray, "H W 3"], vocabulary: Vocabulary) -> Result:
    """Returns a panoptic annotation in the form of a result, for drawing. Crowds are left out."""
    id_map: Int[np.ndarray, "H W"] = np.zeros(truth.id_map.shape, np.int64)
    kept = np.flatnonzero(~truth.crowds)
    for number, row in enumerate(kept, start=1):
        id_map[truth.id_map == truth.ids[row]] = number
    segments = []
    for number, box in enumerate(ndimage.find_objects(id_map, len(kept)), start=1):
        if box is not None:
            y, x = box
            index = int(truth.classes[kept[number - 1]])
            area = int(np.sum(id_map[box] == number))
            corners = (x.start, y.start, x.stop, y.stop)
            segments.append(Segment(number, index, vocabulary.classes[index], 1.0, area, corners))
    return Result(image, vocabulary, Panoptic(id_map, segments), None, None)


def _panoptic(id_map: Int[np.ndarray, "H W"], segments: Segments, vocabulary: Vocabulary) -> Panoptic:
    rows = []
    for index, found in enumerate(ndimage.find_objects(id_map, int(segments.number))):
        class_index = int(segments.class_ids[index])
        y, x = found
        box = (x.start, y.start, x.stop, y.stop)
        score, area = float(segments.scores[index]), int(segments.areas[index])
        rows.append(Segment(index + 1, class_index, vocabulary.classes[class_index], score, area, box))
    return Panoptic(id_map, rows)


def _instances(
    instances: Instances, mask_bits: UInt8[np.ndarray, "N W H8"], height: int, vocabulary: Vocabulary
) -> list[Instance]:
    """Leaves out instances without a pixel."""
    found = []
    for i in range(int(instances.number)):
        area = int(instances.areas[i])
        if not area:
            continue
        class_index, score = int(instances.class_ids[i]), float(instances.scores[i])
        x0, y0, x1, y1 = (int(side) for side in instances.boxes[i])
        entry, bits = vocabulary.classes[class_index], mask_bits[instances.mask_rows[i]]
        found.append(Instance(class_index, entry, score, area, (x0, y0, x1, y1), bits.copy(), height))
    return found
