"""Reads and checks annotation files: label maps, panoptic PNGs, Cityscapes' instance ids, COCO's instance json."""

import io
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8, UInt16
from PIL import Image

from fcclip_jax.conventions import CITYSCAPES_LABELS, IGNORE
from fcclip_jax.data import images
from fcclip_jax.data.coco_json import by_id, check_categories
from fcclip_jax.data.decoding import decode_ids
from fcclip_jax.data.folder import FolderDataset
from fcclip_jax.metrics.panoptic import Truth
from fcclip_jax.text.vocabulary import Vocabulary


class PanopticSource(NamedTuple):
    """One image's panoptic annotation, on disk."""

    dataset: FolderDataset
    index: int

    @property
    def png_path(self) -> epath.Path:
        """The file of the id map."""
        return self.dataset.png_paths[self.index]

    def read(self, vocabulary: Vocabulary) -> Truth:
        """Reads segments and their areas.

        Raises:
            ValueError: the PNG is damaged, has an id that the json does not list, or has more pixels of a segment than the json.
            OSError: the PNG cannot be read.
        """
        record = self.dataset[self.index]
        try:
            id_map = decode_ids(record.panoptic)
        except ValueError as error:
            raise ValueError(f"{self.png_path}: {error}") from error
        ids, categories, crowds = record.segments.T
        areas = self.dataset.areas(self.index)
        self._check(id_map, ids, areas)
        class_of = {entry.id: index for index, entry in enumerate(vocabulary.classes)}
        classes = np.asarray([class_of[category] for category in categories.tolist()], np.int64)
        return Truth(id_map, ids, classes, crowds.astype(bool), areas)

    def _check(
        self, id_map: Int[np.ndarray, "H W"], ids: Int[np.ndarray, " N"], areas: Int[np.ndarray, " N"] | None
    ) -> None:
        pixels = id_map.ravel()
        starts = np.flatnonzero(np.diff(pixels, prepend=-1))  # runs of one id: far fewer than pixels
        found, run_ids = np.unique(pixels[starts], return_inverse=True)
        if (unlisted := np.setdiff1d(found, [0, *ids])).size:
            raise ValueError(f"{self.png_path} has the segment id {unlisted[0]}, which its segments_info does not list")
        if areas is None:
            return
        lengths = np.diff(starts, append=pixels.size)
        counted = dict(zip(found, np.bincount(run_ids, lengths).astype(int), strict=True))
        for id, area in zip(ids, areas, strict=True):
            if area < counted.get(id, 0):  # its IoU could exceed 1
                raise ValueError(
                    f"{self.png_path} has {counted[id]} pixels of the segment {id}, but its segments_info gives an area of"
                    f" {area}"
                )


class LabelMap(NamedTuple):
    """One image's map of class numbers, on disk."""

    path: epath.Path
    first: int
    """The number of the first class; pixels with smaller numbers do not count."""

    def read(self, vocabulary: Vocabulary) -> UInt16[np.ndarray, "H W"]:
        """Reads class indices, from 0 in the vocabulary; ignored pixels are IGNORE.

        Raises:
            ValueError: the file is damaged or has colours, or a number belongs to no class.
            OSError: the file cannot be read.
        """
        labels = _read_numbers(self.path)
        end = self.first + len(vocabulary.classes)
        class_of = np.full(max(1 << 8 * labels.itemsize, end), -1, np.int32)
        class_of[self.first : end] = np.arange(len(vocabulary.classes))
        # ADE20K's 0, for example, stands for everything else.
        class_of[: self.first] = IGNORE
        if vocabulary.ignore_label is not None and vocabulary.ignore_label < len(class_of):
            class_of[vocabulary.ignore_label] = IGNORE
        classes = class_of[labels]
        if (classes < 0).any():
            raise ValueError(
                f"{self.path} has the label {labels[classes < 0][0]}, but the {len(vocabulary.classes)} classes of"
                f" {vocabulary.name!r} have the labels {self.first} to {end - 1}"
            )
        return classes.astype(np.uint16)


def read_instance_ids(path: epath.Path) -> UInt16[np.ndarray, "H W"]:
    """Reads Cityscapes' *_instanceIds.png.

    Raises:
        ValueError: the file is damaged or has colours, or an id belongs to no label.
        OSError: the file cannot be read.
    """
    ids = _read_numbers(path).astype(np.uint16)
    if (label := int(ids.max()) // 1000) >= CITYSCAPES_LABELS:
        raise ValueError(f"{path} has the id {ids.max()}, whose label {label} does not exist")
    return ids


def semantic_from_panoptic(truth: Truth) -> UInt16[np.ndarray, "H W"]:
    """Returns the semantic map of a panoptic annotation, crowds included, computed as COCO's official map is."""
    order = np.argsort(truth.ids)
    ids = truth.ids[order]
    if not len(ids):
        return np.full(truth.id_map.shape, IGNORE, np.uint16)
    rows = np.minimum(np.searchsorted(ids, truth.id_map), len(ids) - 1)
    found = ids[rows] == truth.id_map
    return np.where(found, truth.classes[order][rows], IGNORE).astype(np.uint16)


def read_instances(path: epath.Path, ids: Sequence[int | str], vocabulary: Vocabulary) -> dict:
    """Reads a json in COCO's instance format and returns the entries of these images, in their order.

    Annotations are renumbered from 1, since pycocotools takes the id 0 for no annotation.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the json is damaged, does not list an image, or has an entry that pycocotools would misread.
    """
    if not path.exists():
        raise FileNotFoundError(f"the instance annotation {path} does not exist")
    try:
        content = json.loads(path.read_bytes())
        entries = by_id(content["images"])
        if missing := [id for id in ids if id not in entries]:
            raise ValueError(f"the image {missing[0]!r} is missing ({len(missing)} of {len(ids)} images are)")
        sizes = {id: (entries[id]["height"], entries[id]["width"]) for id in ids}
        annotations = [entry for entry in content["annotations"] if entry["image_id"] in sizes]
        for entry in annotations:
            _check_instance(entry, sizes[entry["image_id"]])
        things = {entry.id for entry in vocabulary.classes if entry.is_thing}
        unknown = [entry["category_id"] for entry in annotations if entry["category_id"] not in things]
        count = len({entry["id"] for entry in annotations})
        categories = [{"id": entry["id"], "name": entry["name"]} for entry in content["categories"]]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        fault = f"an entry has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} does not annotate these images in COCO's instance format: {fault}") from None
    check_categories(content["categories"], path)
    if unknown:
        raise ValueError(
            f"{path} has the category {unknown[0]}, which is not a thing class of the vocabulary {vocabulary.name!r}"
        )
    if count < len(annotations):
        raise ValueError(
            f"{path} has {len(annotations)} annotations of these images but only {count} ids; give each its own"
        )
    numbered = [{**entry, "id": number} for number, entry in enumerate(annotations, start=1)]
    return {"images": [entries[id] for id in ids], "annotations": numbered, "categories": categories}


def _check_instance(entry: dict, size: tuple[int, int]) -> None:
    """Raises KeyError or ValueError for entries that pycocotools would fail on or misread; size is (height, width)."""
    segmentation, area, crowd = entry["segmentation"], entry["area"], entry["iscrowd"]
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != size:
            raise ValueError(
                f"the mask of the annotation {entry['id']} is {segmentation['size'][1]}x{segmentation['size'][0]} pixels,"
                f" but its image is {size[1]}x{size[0]}"
            )
        valid = isinstance(segmentation["counts"], (str, list))
    else:
        polygons = segmentation if isinstance(segmentation, list) else []
        valid = bool(polygons) and all(isinstance(each, list) and len(each) >= 6 for each in polygons)
    if not valid:
        raise ValueError(f"the annotation {entry['id']} has neither polygons nor an RLE")
    if not isinstance(area, (int, float)) or crowd not in (0, 1):
        raise ValueError(f"the annotation {entry['id']} has the area {area!r} and the iscrowd {crowd!r}")


def _read_numbers(path: epath.Path) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    """Reads the numbers that a file stores; OpenCV would turn a palette into colours."""
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in ("P", "L", "1"):
                return images.stored_numbers(image).astype(np.uint8)
            if image.mode.startswith("I"):
                numbers = np.asarray(image)
                if numbers.min() < 0 or numbers.max() > IGNORE:
                    raise ValueError(f"labels must be from 0 to {IGNORE}")
                return numbers.astype(np.uint16)
            mode = image.mode
    except (Exception, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: the label map cannot be read: {error}") from error
    raise ValueError(f"{path}: a label map must have one channel of class numbers, but Pillow's mode is {mode}")
