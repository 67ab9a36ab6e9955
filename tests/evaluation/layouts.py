"""Small copies of the nine benchmarks in their official layouts, with the arrays that readers must return."""

import json
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from fcclip_jax.conventions import IGNORE
from fcclip_jax.text.vocabulary import Vocabulary
from tests.data.tiny import encode, ids_to_png


class Layout(NamedTuple):
    """The files of one benchmark after download and preparation; {} stands for an image's name."""

    folder: str
    image: str
    label: str | None
    first: int
    ignored: int | None
    json: str | None = None
    png: str | None = None
    instances: str | None = None


LAYOUTS = {
    "coco": Layout("coco", "val2017/{}.jpg", None, 0, None, "annotations/panoptic_val2017.json",
                   "annotations/panoptic_val2017/{}.png", "annotations/instances_val2017.json"),
    "ade20k": Layout("ADEChallengeData2016", "images/validation/{}.jpg", "annotations/validation/{}.png", 1, 0,
                     "ade20k_panoptic_val.json", "ade20k_panoptic_val/{}.png", "ade20k_instance_val.json"),
    "cityscapes": Layout("cityscapes", "leftImg8bit/val/{city}/{}_leftImg8bit.png",
                         "gtFine/val/{city}/{}_gtFine_labelTrainIds.png", 0, 255, "gtFine/cityscapes_panoptic_val.json",
                         "gtFine/cityscapes_panoptic_val/{}_gtFine_panoptic.png"),
    "mapillary": Layout("mapillary_vistas", "validation/images/{}.jpg", "validation/labels/{}.png", 0, 65,
                        "validation/panoptic/panoptic_2018.json", "validation/panoptic/{}.png"),
    "ade20k_847": Layout("ADE20K_2021_17_01", "images_detectron2/validation/{}.jpg",
                         "annotations_detectron2/validation/{}.tif", 0, 65535),
    "pascal_context_459": Layout("pascal_ctx_d2", "images/validation/{}.jpg", "annotations_ctx459/validation/{}.tif", 0,
                                 65535),
    "pascal_context_59": Layout("pascal_ctx_d2", "images/validation/{}.jpg", "annotations_ctx59/validation/{}.png", 0,
                                255),
    "pascal_voc_21": Layout("pascal_voc_d2", "images/validation/{}.jpg", "annotations_pascal21/validation/{}.png", 0,
                            255),
    "pascal_voc_20": Layout("pascal_voc_d2", "images/validation/{}.jpg", "annotations_pascal20/validation/{}.png", 0,
                            255),
}  # fmt: skip
VOCABULARIES = {"coco": "coco_panoptic", "ade20k": "ade20k_150", "mapillary": "mapillary_vistas"}


class Truth(NamedTuple):
    """The content of one image and its annotation."""

    name: str
    image: np.ndarray
    classes: np.ndarray
    """Class indices, from 0; ignored pixels are IGNORE."""
    segments: np.ndarray
    """Panoptic ids; 0 is void."""


def write(benchmark: str, root: pathlib.Path, number: int = 3, *, size: tuple[int, int] = (96, 128)) -> list[Truth]:
    """Writes the benchmark's folder into the root. The first and the last class occur in each image."""
    layout = LAYOUTS[benchmark]
    folder = root / layout.folder
    vocabulary = Vocabulary.load(VOCABULARIES.get(benchmark, benchmark))
    rng = np.random.default_rng(number)
    truths, content = [], {"images": [], "annotations": [], "categories": []}
    instances = {"images": [], "annotations": [], "categories": []}
    for entry in vocabulary.classes:
        content["categories"].append({"id": entry.id, "name": entry.name, "isthing": int(entry.is_thing)})
        if entry.is_thing:
            instances["categories"].append({"id": entry.id, "name": entry.name})
    for index in range(number):
        height, width = size if index % 2 else (size[0] - 7, size[1] + 10)
        name = f"frankfurt_000000_{index:06}" if benchmark == "cityscapes" else f"{index + 100:012}"
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        classes, segments, infos = annotate(rng, height, width, vocabulary)
        path = folder / layout.image.format(name, city="frankfurt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image, "jpeg" if path.suffix == ".jpg" else "png"))
        truths.append(Truth(name, np.asarray(Image.open(path)), classes, segments))
        if layout.label:
            ignored = IGNORE if layout.ignored is None else layout.ignored
            labels = np.where(classes == IGNORE, ignored, classes.astype(np.int64) + layout.first)
            path = folder / layout.label.format(name, city="frankfurt")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels.astype(np.uint16 if path.suffix == ".tif" else np.uint8)).save(path)
        if benchmark == "cityscapes":
            path = folder / f"gtFine/val/frankfurt/{name}_gtFine_instanceIds.png"
            Image.fromarray(instance_ids(classes, vocabulary)).save(path)
        if layout.json:
            image_id = int(name) if benchmark == "coco" else name
            path = folder / layout.png.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(ids_to_png(segments))
            file = pathlib.Path(layout.image.format(name, city="frankfurt")).name
            if benchmark == "cityscapes":  # cityscapesScripts writes the name of a file that does not exist
                file = f"{name}_gtFine_leftImg8bit.png"
            head = {"id": image_id, "file_name": file, "height": height, "width": width}
            content["images"].append(head)
            content["annotations"].append({"image_id": image_id, "file_name": path.name, "segments_info": infos})
            instances["images"].append(head)
            things = {entry.id for entry in vocabulary.classes if entry.is_thing}
            for info in infos:
                if info["category_id"] in things:
                    encoded = coco_mask.encode(np.asfortranarray(segments == info["id"], np.uint8))
                    instances["annotations"].append(
                        {
                            **info,
                            "id": len(instances["annotations"]) + 1,
                            "image_id": image_id,
                            "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
                        }
                    )
    if layout.json:
        (folder / layout.json).write_text(json.dumps(content))
    else:
        (folder / "prepared_val.json").write_text(json.dumps({"images": number}))
    if layout.instances:
        (folder / layout.instances).write_text(json.dumps(instances))
    return truths


def annotate(
    rng: np.random.Generator, height: int, width: int, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Makes six wavy columns: the first class, three others, the last, and one that does not count."""
    count = len(vocabulary.classes)
    chosen = [0, *rng.choice(np.arange(1, count - 1), 3, replace=False).tolist(), count - 1]
    y, x = np.mgrid[:height, :width]
    columns = np.clip((x + 5 * np.sin(y / 6)) * 6 // width, 0, 5).astype(int)
    classes = np.full((height, width), IGNORE, np.int64)
    segments = np.zeros((height, width), np.int64)
    infos = []
    for column, index in enumerate(chosen):
        mask = columns == column
        classes[mask] = index
        segments[mask] = 1000 * (column + 1) + index
        box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, np.uint8))).tolist()
        infos.append({"id": 1000 * (column + 1) + index, "category_id": vocabulary.classes[index].id, "iscrowd": 0,
                      "area": int(mask.sum()), "bbox": box})  # fmt: skip
    return classes, segments, infos


def instance_ids(classes: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Makes Cityscapes' instance ids: one instance of each thing, label ids for stuff; 4 (static) does not count."""
    ids = np.full(classes.shape, 4, np.uint16)
    for index, entry in enumerate(vocabulary.classes):
        ids[classes == index] = 1000 * entry.id if entry.is_thing else entry.id
    return ids


def write_photos(folder: pathlib.Path, classes: dict[str, int]) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes a photograph and a label map of one class for each name; returns the folders of both."""
    for name, label in classes.items():
        for path in (folder / "photos" / f"{name}.jpg", folder / "maps" / f"{name}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / "photos" / f"{name}.jpg")
        Image.fromarray(np.full((6, 8), label, np.uint8)).save(folder / "maps" / f"{name}.png")
    return folder / "photos", folder / "maps"
