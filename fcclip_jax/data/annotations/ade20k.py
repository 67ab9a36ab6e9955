"""Makes ADE20K-150's panoptic and instance annotations from its semantic and instance maps (ADEChallengeData2016).

Stuff is pasted first and things over it, but stuff is measured before that: its area and box in the json may exceed the
pixels left in the PNG, and a segment may have no pixels left (prepare_ade20k_pan_seg.py). Panoptic quality is defined on
those areas, so they stay. The official scripts draw the ids of all but the first thing of a class at random; here they
follow from the image.
"""

import pathlib

import numpy as np
from jaxtyping import Int32, UInt8
from pycocotools import mask as coco_mask

from fcclip_jax.data import datasets
from fcclip_jax.data.annotations import jobs, pixels
from fcclip_jax.data.annotations.jobs import FOLDERS, Converted, Job, Plan
from fcclip_jax.text.vocabulary import Vocabulary

OFFICIAL_COUNTS = {"train": 20210, "val": 2000}
ADVICE = (
    "unpack ADEChallengeData2016.zip (images/, annotations/) and, inside ADEChallengeData2016, annotations_instance.tar"
    " (annotations_instance/)"
)

_CLASSES = Vocabulary.load("ade20k_150").classes
_THINGS = [entry.id for entry in _CLASSES if entry.is_thing]
"""The classes of the instance maps' numbers, from 1: things only, in the order of the classes."""


def plan(root: pathlib.Path, split: str) -> Plan:
    """root: ADEChallengeData2016, or the folder that contains it."""
    root, folder = jobs.own_folder(root, datasets.FOLDERS["ade20k_panoptic"]), FOLDERS[split]
    layout = datasets.DATASETS["ade20k_panoptic"][split]

    def job(image: pathlib.Path) -> Job:
        name = f"{image.stem}.png"
        return Job(
            sources=(image, root / "annotations" / folder / name, root / "annotations_instance" / folder / name),
            results=(root / "annotations_detectron2" / folder / name, root / layout.pngs[0] / name),
            convert=convert,
        )

    images = jobs.list_files(root / layout.images, "*.jpg", ADVICE)
    summaries = {
        root / layout.json: _panoptic_json,
        root / f"ade20k_instance_{split}.json": _instance_json,
    }
    return Plan([job(image) for image in images], OFFICIAL_COUNTS[split], ADVICE, summaries)


def convert(image: pathlib.Path, semantic: pathlib.Path, instance: pathlib.Path) -> Converted:
    """Returns one image's maps, and its entries in both jsons."""
    labels, instances = pixels.read_labels(semantic), pixels.read(instance)
    if instances.dtype != np.uint8 or instances.ndim != 3:
        raise ValueError(f"{instance} is not an RGB image; unpack it again")
    pixels.check_labels(labels, set(range(len(_CLASSES) + 1)), semantic)
    pixels.check_shapes({semantic: labels, instance: instances}, image)
    try:
        things = _things(instances)
    except ValueError as error:
        raise ValueError(f"{instance}: {error}; unpack it again") from None
    ids, segments = _paste(labels, things)
    height, width = labels.shape
    record = {
        "image": {"id": image.stem, "file_name": image.name, "width": width, "height": height},
        "segments": segments,
        "instances": [_instance(thing, category) for thing, category in things],
    }
    return Converted((labels - np.uint8(1), pixels.ids_to_colors(ids)), record)


Thing = tuple[np.ndarray, int]
"""A thing's mask and class."""


def _things(instances: UInt8[np.ndarray, "H W C"]) -> list[Thing]:
    """Returns the things of an instance map. R is the class and G the number within the image; 0 is none."""
    found = []
    for number in np.unique(instances[..., 1]):
        if number == 0:
            continue
        mask = instances[..., 1] == number
        numbers = np.unique(instances[..., 0][mask])
        if len(numbers) > 1:
            raise ValueError(f"the instance {number} has {len(numbers)} classes")
        if not 1 <= numbers[0] <= len(_THINGS):
            raise ValueError(f"the instance {number} has the class {numbers[0]}, which is not from 1 to {len(_THINGS)}")
        found.append((mask, _THINGS[numbers[0] - 1]))
    return found


def _paste(labels: UInt8[np.ndarray, "H W"], things: list[Thing]) -> tuple[Int32[np.ndarray, "H W"], list[dict]]:
    """Returns the map of segment ids, and the segments in the order in which they were pasted."""
    stuff = [int(label) - 1 for label in np.unique(labels) if label and not _CLASSES[label - 1].is_thing]
    ids, segments, taken = np.zeros(labels.shape, np.int32), [], {0}
    for mask, category in [*((labels == category + 1, category) for category in stuff), *things]:
        red, green, blue = _CLASSES[category].color
        id = red + 256 * green + 65536 * blue
        while id in taken:
            id = (id + 1) % (1 << 24)
        taken.add(id)
        ids[mask] = id
        segments.append({"id": id, "category_id": category, **pixels.area_and_box(mask), "iscrowd": 0})
    return ids, segments


def _instance(mask: np.ndarray, category: int) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    segmentation = {"size": list(mask.shape), "counts": code["counts"].decode()}
    return {"iscrowd": 0, "category_id": category, "segmentation": segmentation, **pixels.area_and_box(mask)}


def _panoptic_json(records: list[dict]) -> dict:
    annotations = [
        {
            "image_id": record["image"]["id"],
            "file_name": f"{record['image']['id']}.png",
            "segments_info": record["segments"],
        }
        for record in records
    ]
    categories = [
        {"name": entry.name, "id": entry.id, "isthing": int(entry.is_thing), "color": entry.color} for entry in _CLASSES
    ]
    return {
        "images": [record["image"] for record in records],
        "annotations": annotations,
        "categories": categories,
    }


def _instance_json(records: list[dict]) -> dict:
    found = [(record["image"]["id"], instance) for record in records for instance in record["instances"]]
    return {
        "images": [record["image"] for record in records],
        "categories": [{"id": entry.id, "name": entry.name} for entry in _CLASSES if entry.is_thing],
        "annotations": [{"id": id, "image_id": image, **entry} for id, (image, entry) in enumerate(found, start=1)],
    }
