"""Makes ADE20K-847's (A-847) images and 16-bit maps from the full dataset (ADE20K_2021_17_01).

Three properties of the official script (prepare_ade20k_full_sem_seg.py) affect the scores and are kept: images shrink
to a short side of 512 only if both sides exceed it; labels shrink by OpenCV's nearest neighbours; and images are
written as JPEG of Pillow's default quality even if they keep their size. Two are not kept: it reads the list of files
from a pickle, while listing the folders gives the same; and it writes to ade/ADE20K_2021_17_01, which no program reads.
"""

import functools
import json
import pathlib
from importlib import resources

import cv2
import numpy as np
from jaxtyping import Int, UInt8, UInt16

from fcclip_jax.conventions import IGNORE
from fcclip_jax.data.annotations import jobs, pixels
from fcclip_jax.data.annotations.jobs import FOLDERS, Converted, Job, Plan

OFFICIAL_COUNTS = {"train": 25574, "val": 2000}
NAME = "ADE20K_2021_17_01"
SHORT_SIDE = 512
ADVICE = f"unpack the full ADE20K, which its site sends after registration ({NAME}/images/ADE)"


def plan(root: pathlib.Path, split: str) -> Plan:
    """root: ADE20K_2021_17_01, or the folder that contains it, directly or in ade/ as the official script requires.

    In all cases, results are written to the ADE20K_2021_17_01 that evaluation reads: directly in the containing folder.
    """
    root, folder = root.expanduser().absolute(), FOLDERS[split]
    output = root if (root / "images").is_dir() else root / NAME
    official = output.parent / "ade" / NAME
    source = official if official.is_dir() and not (output / "images").is_dir() else output

    def job(image: pathlib.Path) -> Job:
        return Job(
            sources=(image, image.with_name(f"{image.stem}_seg.png")),
            results=(
                output / "images_detectron2" / folder / image.name,
                output / "annotations_detectron2" / folder / f"{image.stem}.tif",
            ),
            convert=convert,
        )

    images = jobs.list_files(source / "images" / "ADE" / folder, "**/*.jpg", ADVICE)
    return Plan(
        [job(image) for image in images], OFFICIAL_COUNTS[split], ADVICE, count_file=output / f"prepared_{split}.json"
    )


def convert(image: pathlib.Path, annotation: pathlib.Path) -> Converted:
    """Returns the image and its map, at the size that evaluation reads."""
    colors, photo = pixels.read(annotation), pixels.read(image)
    if colors.dtype != np.uint8 or colors.ndim != 3:
        raise ValueError(f"{annotation} is not an RGB image; unpack it again")
    pixels.check_shapes({annotation: colors}, image)
    labels = class_ids()[object_ids(colors)]
    if (shape := resized_shape(*labels.shape)) != labels.shape:
        photo = cv2.resize(photo, shape[::-1], interpolation=cv2.INTER_LINEAR)
        rows, columns = (nearest(side, new) for side, new in zip(labels.shape, shape, strict=True))
        labels = labels[rows[:, None], columns]
    return Converted((photo, labels))


def object_ids(colors: UInt8[np.ndarray, "H W C"]) -> Int[np.ndarray, "H W"]:
    """Returns the dataset's own object numbers, which combine the tens of R with all of G."""
    return colors[..., 0].astype(np.int64) // 10 * 256 + colors[..., 1]


@functools.cache
def class_ids() -> UInt16[np.ndarray, " {26*256}"]:
    """Returns the class of each of the dataset's numbers, and IGNORE for numbers of none of the 847 classes.

    17 classes have no number: in the official table a later class has the same number, and the last class with it is
    used.
    """
    numbers = json.loads((resources.files(__package__) / "ade20k_847_objects.json").read_text("utf-8"))
    classes = np.full(26 * 256, IGNORE, np.uint16)
    for index, number in enumerate(numbers):
        if number is not None:
            classes[number] = index
    return classes


def resized_shape(height: int, width: int) -> tuple[int, int]:
    """Returns the size with the short side limited to 512; the other side is rounded half to even."""
    if min(height, width) <= SHORT_SIDE:
        return height, width
    if width >= height:
        return SHORT_SIDE, round(width / height * SHORT_SIDE)
    return round(height / width * SHORT_SIDE), SHORT_SIDE


def nearest(source: int, target: int) -> Int[np.ndarray, " target"]:
    """Returns the source pixel of each target pixel, equal to OpenCV's INTER_NEAREST.

    OpenCV's step is 1 / (target / source); source / target would differ in rare rows.
    """
    step = 1 / (target / source)
    return np.minimum(np.floor(np.arange(target) * step).astype(np.int64), source - 1)
