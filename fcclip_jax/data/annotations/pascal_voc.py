"""Makes Pascal VOC 2012's label maps with the background as a class (PAS-21) and without it (PAS-20)."""

import pathlib

import numpy as np

from fcclip_jax.conventions import IGNORE_8BIT
from fcclip_jax.data.annotations import jobs, pixels
from fcclip_jax.data.annotations.jobs import FOLDERS, Converted, Job, Plan

OFFICIAL_COUNTS = {"train": 1464, "val": 1449}
BACKGROUND, CLASSES = 0, 20
ADVICE = "unpack VOCtrainval_11-May-2012.tar (VOCdevkit/VOC2012)"


def plan(root: pathlib.Path, split: str) -> Plan:
    """root: VOCdevkit, or the folder that contains it; pascal_voc_d2 is written next to VOCdevkit."""
    devkit, folder = jobs.own_folder(root, "VOCdevkit"), FOLDERS[split]
    voc, output = devkit / "VOC2012", devkit.parent / "pascal_voc_d2"

    def job(name: str) -> Job:
        image, annotation = voc / "JPEGImages" / f"{name}.jpg", voc / "SegmentationClass" / f"{name}.png"
        return Job(
            sources=(image, annotation),
            results=(
                output / "images" / folder / image.name,
                output / "annotations_pascal21" / folder / annotation.name,
                output / "annotations_pascal20" / folder / annotation.name,
            ),
            convert=convert,
        )

    names = _read_names(voc / "ImageSets" / "Segmentation" / f"{split}.txt")
    return Plan(
        [job(name) for name in names], OFFICIAL_COUNTS[split], ADVICE, count_file=output / f"prepared_{split}.json"
    )


def convert(image: pathlib.Path, annotation: pathlib.Path) -> Converted:
    """Returns the unchanged image and both maps; the borders of objects are 255 in both."""
    labels = pixels.read_labels(annotation)
    pixels.check_labels(labels, {*range(CLASSES + 1), IGNORE_8BIT}, annotation)
    pixels.check_shapes({annotation: labels}, image)
    counted = (labels != BACKGROUND) & (labels != IGNORE_8BIT)
    objects = np.where(counted, labels - np.uint8(1), IGNORE_8BIT).astype(np.uint8)
    return Converted((image.read_bytes(), labels, objects))


def _read_names(path: pathlib.Path) -> list[str]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {ADVICE}")
    try:
        names = path.read_text("utf-8").split()
    except UnicodeDecodeError:
        names = []
    if not names:
        raise ValueError(f"{path} is empty or not text; {ADVICE}")
    return names
