"""Makes Cityscapes' panoptic annotations, and its label maps of training ids, from gtFine.

They equal those of cityscapesScripts (createPanopticImgs.py with its default, label ids; createTrainIdLabelImgs.py). The
parts of its table of labels (helpers/labels.py) that are needed are the vocabulary's ids and the groups below.
"""

import pathlib

import numpy as np
from jaxtyping import Shaped, UInt8

from fcclip_jax.conventions import CITYSCAPES_LABELS, IGNORE_8BIT
from fcclip_jax.data.annotations import jobs, pixels
from fcclip_jax.data.annotations.jobs import Converted, Job, Plan
from fcclip_jax.text.vocabulary import Vocabulary

OFFICIAL_COUNTS = {"train": 2975, "val": 500}
GROUPS = {
    "flat": range(7, 11),
    "construction": range(11, 17),
    "object": range(17, 21),
    "nature": range(21, 23),
    "sky": range(23, 24),
    "human": range(24, 26),
    "vehicle": range(26, 34),
}
"""The labels of each supercategory."""
INSTANCE = 1000
"""An instance's id is its label times this, plus its number. Smaller ids are labels, of stuff or of crowds."""
ADVICE = "unpack gtFine_trainvaltest.zip (cityscapes/gtFine)"

_CLASSES = {entry.id: entry for entry in Vocabulary.load("cityscapes").classes}


def plan(root: pathlib.Path, split: str) -> Plan:
    """root: the folder cityscapes, which contains gtFine, or the folder that contains cityscapes."""
    truth = jobs.own_folder(root, "cityscapes") / "gtFine"
    name = f"cityscapes_panoptic_{split}"

    def job(instances: pathlib.Path) -> Job:
        stem = instances.name.removesuffix("_instanceIds.png")
        return Job(
            sources=(instances, instances.with_name(f"{stem}_labelIds.png")),
            results=(truth / name / f"{stem}_panoptic.png", instances.with_name(f"{stem}_labelTrainIds.png")),
            convert=convert,
        )

    found = jobs.list_files(truth / split, "*/*_gtFine_instanceIds.png", ADVICE)
    summaries = {truth / f"{name}.json": _panoptic_json}
    return Plan([job(instances) for instances in found], OFFICIAL_COUNTS[split], ADVICE, summaries)


def convert(instances: pathlib.Path, labels: pathlib.Path) -> Converted:
    """Returns one image's maps, and its entry in the json."""
    ids, label_map = pixels.read(instances), pixels.read_labels(labels)
    if ids.ndim != 2:
        raise ValueError(f"{instances} is not a map of ids; unpack it again")
    pixels.check_labels(label_map, set(range(CITYSCAPES_LABELS)), labels)
    pixels.check_shapes({labels: label_map}, instances)
    kept, segments = np.zeros(ids.shape, np.int32), []
    for id in np.unique(ids).tolist():
        label = id // INSTANCE if id >= INSTANCE else id
        if not 0 <= label < CITYSCAPES_LABELS:
            raise ValueError(f"{instances} has the id {id}, whose label {label} does not exist; unpack it again")
        if label not in _CLASSES:
            continue
        mask = ids == id
        kept[mask] = id
        crowd = int(id < INSTANCE and _CLASSES[label].is_thing)
        segments.append({"id": id, "category_id": label, **pixels.area_and_box(mask), "iscrowd": crowd})
    height, width = ids.shape
    stem = instances.name.removesuffix("_gtFine_instanceIds.png")
    record = {
        "image": {"id": stem, "width": width, "height": height, "file_name": f"{stem}_gtFine_leftImg8bit.png"},
        "annotation": {"image_id": stem, "file_name": f"{stem}_gtFine_panoptic.png", "segments_info": segments},
    }
    return Converted((pixels.ids_to_colors(kept), train_ids(label_map)), record)


def train_ids(labels: Shaped[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Returns classes 0..18 for labels 0..33, and 255 for labels that are not evaluated."""
    table = np.full(CITYSCAPES_LABELS, IGNORE_8BIT, np.uint8)
    table[list(_CLASSES)] = np.arange(len(_CLASSES))
    return table[labels]


def _panoptic_json(records: list[dict]) -> dict:
    groups = {label: group for group, labels in GROUPS.items() for label in labels}
    return {
        "images": [record["image"] for record in records],
        "annotations": [record["annotation"] for record in records],
        "categories": [
            {
                "id": label,
                "name": entry.name,
                "color": entry.color,
                "supercategory": groups[label],
                "isthing": int(entry.is_thing),
            }
            for label, entry in _CLASSES.items()
        ],
    }
