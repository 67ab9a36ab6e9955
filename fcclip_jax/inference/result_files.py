"""Results as files: COCO's panoptic and instance formats, semantic maps, pictures."""

import io
import json
import math
import pathlib
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8, UInt16
from PIL import Image
from pycocotools import mask as coco_mask

from fcclip_jax.conventions import TASKS
from fcclip_jax.files import write_files
from fcclip_jax.inference.results import Result
from fcclip_jax.inference.segments import Box, Instance, Panoptic
from fcclip_jax.text.vocabulary import Vocabulary

MOST_CLASSES = 2**16
"""A 16-bit PNG has this many values."""

JSON_FILES = ("images.json", "panoptic.json", "instances.json")

LONGEST_NAME = 255 - len("-999999.instances.jpg.partial")
"""Bytes of an output's name without what follows it; file systems allow 255."""

UPDATE_SHARE = 0.05
"""At most this share of a run's time is spent on JSON files of images that are done while others are not."""


class NamedPhoto(NamedTuple):
    """The file of an image to be segmented, and the name of its outputs."""

    path: pathlib.Path
    id: int
    name: str


def name_photos(paths: Sequence[pathlib.Path], known: Sequence[NamedPhoto] = ()) -> list[NamedPhoto]:
    """Gives each image a unique id and a unique name.

    The name is the file's own without its suffix, shortened where the names of the outputs would be too long. Of several with
    the same name, the later ones get -2, -3 and so on; names that differ only in capitals count as the same, as they do in many
    file systems. If every name is a number, ids are these numbers, as in COCO, so that results can be compared with COCO's
    annotations; otherwise they count from 1.

    known: images of an earlier run, whose names and ids stay, and are not given to others.
    """
    earlier = {photo.path: photo for photo in known}
    stems = [_shortened(path.stem) for path in paths]
    taken = Counter(map(str.casefold, stems))
    used = {photo.name.casefold() for photo in known}
    names: list[str] = []
    for path, stem in zip(paths, stems, strict=True):
        if path in earlier:
            names.append(earlier[path].name)
            continue
        name, count = stem, 1
        while name.casefold() in used or (count > 1 and name.casefold() in taken):
            count += 1
            name = f"{stem}-{count}"
        used.add(name.casefold())
        names.append(name)
    numbers = [number for name in names if (number := _number(name)) is not None]
    numbered = len(set(numbers)) == len(names) and all(_number(photo.name) == photo.id for photo in known)
    used_ids = {photo.id for photo in known}
    photos = []
    for place, (path, name) in enumerate(zip(paths, names, strict=True)):
        if path in earlier:
            photos.append(earlier[path])
            continue
        id = numbers[place] if numbered else place + 1
        if id in used_ids:
            id = max(used_ids) + 1
        used_ids.add(id)
        photos.append(NamedPhoto(path, id, name))
    return photos


def _number(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdigit() else None


def _shortened(name: str) -> str:
    """Returns the name, cut to LONGEST_NAME bytes."""
    return name.encode(errors="surrogateescape")[:LONGEST_NAME].decode(errors="ignore")


class Entry(NamedTuple):
    """What the JSON files say about one image, in COCO's formats."""

    image: Mapping[str, Any]
    annotation: Mapping[str, Any] | None
    """The panoptic one."""
    instances: Sequence[Mapping[str, Any]]


class Exporter:
    """Writes the results of a run into one folder, those of each image at once.

        images.json                        the images, and the categories with the `index` that semantic maps hold
        panoptic.json, panoptic/NAME.png   COCO's panoptic format: a pixel's segment id is R + 256 G + 65536 B
        instances.json                     COCO's result format: boxes, scores, masks as RLE
        semantic/NAME.png                  a pixel's class, from 0 in the vocabulary: `encode_semantic`
        overlays/NAME.TASK.jpg             pictures

    Category ids are the vocabulary's own. Files are written under temporary names and then renamed, so none is
    incomplete. Files of the same name from an earlier run are replaced; others stay.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        vocabulary: Vocabulary,
        *,
        tasks: Collection[str],
        threshold: float,
        overlays: bool = True,
    ):
        """threshold: the minimum score of an instance that is written or drawn.

        overlays: False writes no pictures.

        Raises:
            ValueError: a semantic map has fewer values than the vocabulary has classes.
        """
        if "semantic" in tasks and len(vocabulary.classes) > MOST_CLASSES:
            raise ValueError(
                f"{len(vocabulary.classes)} classes are more than the {MOST_CLASSES} that a semantic PNG can number;"
                " use fewer classes, or other tasks"
            )
        self._folder, self._vocabulary, self._tasks, self._threshold = folder, vocabulary, tuple(tasks), threshold
        self._overlays = overlays
        self._entries: dict[int, Entry] = {}
        self._next_update = -math.inf

    def files(self, name: str) -> list[pathlib.Path]:
        """Returns the files of the image with this name."""
        return files_of(self._folder, name, self._tasks, overlays=self._overlays)

    def write(self, photo: NamedPhoto, result: Result) -> Entry:
        """Writes the files of one image, all or none; several threads may write different images at once.

        Returns:
            What the JSON files are to say about it; see `keep`.

        Raises:
            OSError: they cannot be written.
        """
        files: dict[pathlib.Path, bytes] = {}
        annotation, instances = None, []
        if "panoptic" in self._tasks:
            path = self._folder / "panoptic" / f"{photo.name}.png"
            files[path] = encode_png(encode_ids(result.panoptic.id_map))
            annotation = {
                "image_id": photo.id,
                "file_name": path.name,
                "segments_info": segments_info(result.panoptic),
            }
        if "semantic" in self._tasks:
            path = self._folder / "semantic" / f"{photo.name}.png"
            files[path] = encode_semantic(result.semantic, self._vocabulary)
        if "instances" in self._tasks:
            found = [instance for instance in result.instances if instance.score >= self._threshold]
            instances = [instance_record(photo.id, instance) for instance in found]
        for task in self._tasks if self._overlays else ():
            picture = np.asarray(result.draw(task, threshold=self._threshold))
            # Chroma at full resolution: coloured labels would blur.
            files[_overlay(self._folder, photo.name, task)] = encode_jpeg(picture, 92, subsampling=0)
        write_files(files, sole_writer=True)  # the next run overwrites the remains of a killed one
        height, width = result.image.shape[:2]
        image = {"id": photo.id, "file_name": photo.path.as_posix(), "width": width, "height": height}
        return Entry(image, annotation, instances)

    def keep(self, entry: Entry) -> None:
        """Includes an image in the JSON files, whose own files this or an earlier run has written."""
        self._entries[entry.image["id"]] = entry

    def update(self) -> None:
        """Writes the JSON files now, if not too much of the run's time has been spent on them: see UPDATE_SHARE."""
        started = time.monotonic()
        if started >= self._next_update:
            self.finish()
            ended = time.monotonic()
            self._next_update = ended + (ended - started) / UPDATE_SHARE

    def finish(self) -> None:
        """Writes the JSON files about all images so far, by their ids, all or none.

        Raises:
            OSError: they cannot be written.
        """
        entries = [entry for _, entry in sorted(self._entries.items())]
        head = {"images": [entry.image for entry in entries], "categories": categories(self._vocabulary)}
        contents: dict[str, Any] = {"images.json": {"info": {}, **head, "annotations": []}}
        if "panoptic" in self._tasks:
            contents["panoptic.json"] = {"info": {}, **head, "annotations": [entry.annotation for entry in entries]}
        if "instances" in self._tasks:
            contents["instances.json"] = [record for entry in entries for record in entry.instances]
        encoded = {self._folder / name: json.dumps(content).encode() for name, content in contents.items()}
        write_files(encoded, sole_writer=True)


def files_of(
    folder: pathlib.Path, name: str, tasks: Collection[str] = TASKS, *, overlays: bool = True
) -> list[pathlib.Path]:
    """Returns the files of the image with this name, by `Exporter`'s arguments."""
    maps = [folder / task / f"{name}.png" for task in tasks if task != "instances"]
    return maps + [_overlay(folder, name, task) for task in tasks if overlays]


def _overlay(folder: pathlib.Path, name: str, task: str) -> pathlib.Path:
    return folder / "overlays" / f"{name}.{task}.jpg"


def encode_ids(id_map: Int[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns segment ids as the colours of COCO's panoptic PNGs: id = R + 256 G + 65536 B."""
    return np.stack([id_map >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def segments_info(panoptic: Panoptic) -> list[dict[str, Any]]:
    """Returns the segments of one image as COCO's panoptic annotations describe them, with their scores."""
    return [
        {
            "id": segment.id,
            "category_id": segment.entry.id,
            "area": segment.area,
            "bbox": _xywh(segment.box),
            "iscrowd": 0,
            "score": segment.score,
        }
        for segment in panoptic.segments
    ]


def instance_record(image_id: int | str, instance: Instance) -> dict[str, Any]:
    """Returns an instance as an entry of COCO's result format."""
    segmentation = coco_mask.encode(np.asfortranarray(instance.mask, np.uint8))
    return {
        "image_id": image_id,
        "category_id": instance.entry.id,
        "bbox": _xywh(instance.box),
        "score": instance.score,
        "segmentation": {"size": segmentation["size"], "counts": segmentation["counts"].decode("ascii")},
    }


def categories(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Returns the classes as COCO's panoptic files list them; `index` is the value in semantic maps."""
    return [
        {
            "id": entry.id,
            "index": index,
            "name": entry.name,
            "synonyms": entry.names[1:],
            "isthing": int(entry.is_thing),
            "color": entry.color,
        }
        for index, entry in enumerate(vocabulary.classes)
    ]


def encode_semantic(classes: Int[np.ndarray, "H W"], vocabulary: Vocabulary) -> bytes:
    """Returns a semantic map as a PNG of 8 bits for up to 255 classes, of 16 bits for more."""
    return encode_png(classes.astype(np.uint8 if len(vocabulary.classes) <= 255 else np.uint16))


def encode_png(pixels: UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]) -> bytes:
    """Returns RGB pixels, or the values of a map, as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def encode_jpeg(pixels: UInt8[np.ndarray, "H W 3"], quality: int, *, subsampling: int = -1) -> bytes:
    """Returns RGB pixels as a JPEG.

    quality, subsampling: Pillow's; -1 leaves the subsampling of chroma to Pillow, 0 keeps chroma at full resolution.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def _xywh(box: Box) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]
