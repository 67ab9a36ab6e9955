"""Makes Pascal Context's label maps: 59 frequent classes from PASCAL in Detail's json, all 459 from the MATLAB files.

The json defines the splits of both. It has the form of the `detail` package (detail-api): an image's segments are painted
in their order, each over the earlier ones.
"""

import functools
import json
import pathlib
from typing import NamedTuple

import numpy as np
import scipy.io
from jaxtyping import Int, UInt8, UInt16
from pycocotools import mask as coco_mask

from fcclip_jax.data.annotations import jobs, pixels
from fcclip_jax.data.annotations.jobs import FOLDERS, Converted, Job, Plan
from fcclip_jax.data.coco_json import by_id

OFFICIAL_COUNTS = {"train": 4996, "val": 5104}
CLASSES = 459
ADVICE = (
    "unpack VOCtrainval_03-May-2010.tar (VOCdevkit/VOC2010) and, inside VOC2010, Pascal Context's trainval.tar.gz"
    " (trainval/), and put trainval_merged.json there"
)

NUMBERS_59 = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159),
    *(162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368),
    *(397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
"""The json's numbers of the 59 classes (prepare_pascal_ctx_sem_seg.py)."""


class Segment(NamedTuple):
    """One region of an image in the json."""

    category: int
    code: dict
    """COCO's compressed run lengths."""


class Annotated(NamedTuple):
    """One image in the json."""

    file_name: str
    phase: str
    segments: list[Segment]


def plan(root: pathlib.Path, split: str) -> Plan:
    """root: VOCdevkit, or the folder that contains it; pascal_ctx_d2 is written next to VOCdevkit."""
    devkit, folder = jobs.own_folder(root, "VOCdevkit"), FOLDERS[split]
    voc, output = devkit / "VOC2010", devkit.parent / "pascal_ctx_d2"
    path = voc / "trainval_merged.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {ADVICE}")

    def job(entry: Annotated) -> Job:
        image = voc / "JPEGImages" / entry.file_name
        return Job(
            sources=(image, voc / "trainval" / f"{image.stem}.mat"),
            results=(
                output / "images" / folder / image.name,
                output / "annotations_ctx59" / folder / f"{image.stem}.png",
                output / "annotations_ctx459" / folder / f"{image.stem}.tif",
            ),
            convert=functools.partial(convert, entry.segments, path),
        )

    entries = [entry for entry in _read_json(path, path.stat().st_mtime_ns) if entry.phase == split]
    if not entries:
        raise ValueError(f"{path} has no image with the phase {split!r}; {ADVICE}")
    return Plan(
        [job(entry) for entry in entries], OFFICIAL_COUNTS[split], ADVICE, count_file=output / f"prepared_{split}.json"
    )


def convert(segments: list[Segment], annotation: pathlib.Path, image: pathlib.Path, matlab: pathlib.Path) -> Converted:
    """Returns the unchanged image and both maps.

    annotation: the json, for error messages.
    """
    height, width = pixels.image_shape(image)
    try:
        frequent = classes_59(paint(segments, (height, width)))
    except ValueError as error:
        raise ValueError(f"{annotation}, {image.name}: {error}") from None
    every = read_label_map(matlab)
    pixels.check_shapes({matlab: every}, image)
    return Converted((image.read_bytes(), frequent, every - np.uint16(1)))  # 0 (no class) becomes 65535


def paint(segments: list[Segment], shape: tuple[int, int]) -> Int[np.ndarray, "H W"]:
    """Returns each pixel's category, 0 for no segment; raises ValueError for a segment of another size than the image."""
    painted = np.zeros(shape, np.int64)
    for category, code in segments:
        try:
            mask = coco_mask.decode(code)
        # pycocotools raises nearly any exception for invalid run lengths.
        except Exception as error:
            raise ValueError(f"the segment of the category {category} has no valid run lengths") from error
        if mask.shape != shape:
            (rows, columns), (height, width) = mask.shape, shape
            raise ValueError(f"a segment is {columns}x{rows} pixels, but the image {width}x{height}")
        painted[mask != 0] = category
    return painted


def classes_59(numbers: Int[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Returns classes 0..58 for the json's numbers, and 255 for 0; raises ValueError for any other number."""
    known = np.array((0, *NUMBERS_59))
    places = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
    if (strange := known[places] != numbers).any():
        raise ValueError(f"the category {numbers[strange][0]} is not one of the {len(NUMBERS_59)} classes")
    return (places - 1).astype(np.uint8)  # -1, for 0, becomes 255


def read_label_map(path: pathlib.Path) -> UInt16[np.ndarray, "H W"]:
    """Returns numbers 1..459, and 0 for no class; raises ValueError if the file has other numbers, or is damaged."""
    try:
        labels = scipy.io.loadmat(path)["LabelMap"]
    # scipy raises nearly any exception for damaged data.
    except Exception as error:
        raise ValueError(f"cannot read the LabelMap of {path}: {error}; unpack it again") from error
    if not isinstance(labels, np.ndarray) or labels.dtype != np.uint16 or labels.ndim != 2:
        raise ValueError(f"the LabelMap of {path} is not a map of 16-bit labels; unpack it again")
    pixels.check_labels(labels, set(range(CLASSES + 1)), path)
    return labels


@functools.lru_cache(maxsize=1)
def _read_json(path: pathlib.Path, changed: int) -> list[Annotated]:
    """Reads the json, which is large and serves both splits: the last one is kept.

    changed: the file's modification time, so that a changed file is read again.
    """
    try:
        content = json.loads(path.read_bytes())
        images = {
            id: Annotated(str(entry["file_name"]), str(entry["phase"]), [])
            for id, entry in by_id(content["images"], "image_id").items()
        }
        for entry in content["annos_segmentation"]:
            segment = Segment(int(entry["category_id"]), dict(entry["segmentation"]))
            images[entry["image_id"]].segments.append(segment)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        fault = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not PASCAL in Detail's annotation: {fault}; download it again") from None
    return list(images.values())
