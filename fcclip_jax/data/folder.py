"""Annotated images one by one: what a source is, and the source that is a folder in COCO's panoptic format."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Int

from fcclip_jax.text.vocabulary import Vocabulary, color_of

MAX_ID = (1 << 24) - 1
"""Segment ids are a PNG's three bytes."""


class Record(NamedTuple):
    """One image with its panoptic annotation, as it is stored."""

    image_id: int | str
    file_name: str
    """The image's, without its folder."""
    image: bytes
    """The file: JPEG as a rule."""
    panoptic: bytes
    """A PNG whose colours are segment ids: R + 256 G + 65536 B, 0 for void."""
    segments: Int[np.ndarray, "N 3"]
    """(id, category id, whether it is a crowd) of each segment; int64."""


@runtime_checkable
class Dataset(Protocol):
    """Records in a fixed order. `vocabulary` has the categories; its classes' ids are category ids."""

    name: str
    vocabulary: Vocabulary

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raises OSError or ValueError, in one sentence, for a record that cannot be read."""
        ...


class FolderDataset:
    """A folder of images, a folder of panoptic PNGs and the json that ties them: nothing needs preparing."""

    def __init__(
        self,
        images: epath.PathLike,
        panoptic_json: epath.PathLike,
        panoptic_pngs: epath.PathLike,
        vocabulary: Vocabulary | None = None,
        *,
        image_name: str | None = None,
    ):
        """Checks all that can be checked without opening an image. Images may lie in folders within their folder.

        vocabulary: None takes the json's own categories.
        image_name: an image's file by its id, as in "{}_leftImg8bit.png"; None takes the json's file_name.

        Raises:
            FileNotFoundError: a folder, the json, or an image or a PNG that the json names is missing.
            ValueError: the json is not in COCO's panoptic format, has a category that the vocabulary lacks, or does not
                annotate each of its images once.
        """
        self._images, self._pngs = epath.Path(images).expanduser(), epath.Path(panoptic_pngs).expanduser()
        path = epath.Path(panoptic_json).expanduser()
        image_names, png_names = list_files(self._images, "images"), list_files(self._pngs, "panoptic PNGs")
        content = _read_json(path)
        self.name = path.stem
        self.vocabulary = vocabulary or vocabulary_of(content["categories"], path.stem)
        try:
            files = {entry["id"]: entry["file_name"] for entry in content["images"]}
            annotations = content["annotations"]
            self._ids = [entry["image_id"] for entry in annotations]
            times = Counter(self._ids)
            self._png_files = [entry["file_name"] for entry in annotations]
            rows = [
                (segment["id"], segment["category_id"], segment.get("iscrowd", 0))
                for entry in annotations
                for segment in entry["segments_info"]
            ]
            self._areas = np.array(
                [_area(segment.get("area")) for entry in annotations for segment in entry["segments_info"]], np.int64
            )
            counts = [len(entry["segments_info"]) for entry in annotations]
            self._segments = np.array(rows, np.int64).reshape(-1, 3)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} is not in COCO's panoptic format: {_fault(error)}") from None
        if not annotations:
            raise ValueError(f"{path} has no annotations")
        if unknown := [id for id in self._ids if id not in files]:
            raise ValueError(f"{path} annotates the image_id {unknown[0]!r}, which is not among its images")
        if bare := files.keys() - times.keys():
            name = min(str(files[id]) for id in bare)
            raise ValueError(
                f"{path} has no annotation of its image {name} ({len(bare)} of {len(files)} images have none)"
            )
        id, count = times.most_common(1)[0]
        if count > 1:
            raise ValueError(f"{path} annotates the image {files[id]} {count} times")
        self._files = [image_name.format(id) if image_name else files[id] for id in self._ids]
        self._ends = np.cumsum(counts)
        self._check_segments(path)
        _check_present(self._files, image_names, self._images, path)
        _check_present(self._png_files, png_names, self._pngs, path)
        self.image_ids: list[int | str] = self._ids
        self.image_paths = [self._images / image_names[file] for file in self._files]
        self.png_paths = [self._pngs / png_names[file] for file in self._png_files]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Record:
        start = self._ends[index - 1] if index else 0
        return Record(
            image_id=self._ids[index],
            file_name=self._files[index],
            image=self.image_paths[index].read_bytes(),
            panoptic=self.png_paths[index].read_bytes(),
            segments=self._segments[start : self._ends[index]],
        )

    def areas(self, index: int) -> Int[np.ndarray, " N"] | None:
        """Pixels of each of a record's segments, as the json has them; None where it lacks one."""
        areas = self._areas[self._ends[index - 1] if index else 0 : self._ends[index]]
        return None if (areas < 0).any() else areas

    @property
    def digest(self) -> str:
        """Tells annotations apart: a check sum of all but the files' contents."""
        names = json.dumps([self._ids, self._files, self._png_files, self._ends.tolist()])
        return hashlib.sha256(names.encode() + self._segments.tobytes() + self._areas.tobytes()).hexdigest()

    def _check_segments(self, path: epath.Path) -> None:
        ids, categories = self._segments[:, 0], self._segments[:, 1]
        known = np.isin(categories, [entry.id for entry in self.vocabulary.classes])
        if not known.all():
            row = int(np.argmin(known))
            raise ValueError(
                f"{self._where(row, path)} has the category {categories[row]}, which the vocabulary"
                f" {self.vocabulary.name!r} lacks"
            )
        fits = (ids >= 0) & (ids <= MAX_ID)
        if not fits.all():
            row = int(np.argmin(fits))
            raise ValueError(f"{self._where(row, path)} is out of range: ids are from 0 to {MAX_ID}")
        image = np.repeat(np.arange(len(self)), np.diff(self._ends, prepend=0))
        _, first = np.unique(image * (MAX_ID + 1) + ids, return_index=True)
        if len(first) < len(ids):
            row = int(np.setdiff1d(np.arange(len(ids)), first)[0])
            raise ValueError(f"{self._where(row, path)} is there twice: the ids of an image's segments differ")

    def _where(self, row: int, path: epath.Path) -> str:
        image = int(np.searchsorted(self._ends, row, side="right"))
        return f"the segment {self._segments[row, 0]} of {self._png_files[image]} in {path}"


def vocabulary_of(categories: Sequence[dict], name: str) -> Vocabulary:
    """The vocabulary of a json's categories: {"id", "name"} and, if given, "isthing", "color" and "synonyms" (a list).

    Without them a category is a thing, gets a colour of its own, and has one name; commas in the name part synonyms.

    Raises:
        ValueError: they are not of that form, or two share an id.
    """
    try:
        classes = [
            {
                "id": entry["id"],
                "names": [
                    word.strip() for text in (entry["name"], *entry.get("synonyms", ())) for word in text.split(",")
                ],
                "thing": bool(entry.get("isthing", 1)),
                "color": entry.get("color") or color_of(entry["name"]),
            }
            for entry in categories
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the categories of {name} are not of the form {{'id', 'name'}}: {_fault(error)}") from None
    return Vocabulary.from_json(json.dumps({"name": name, "ignore_label": None, "classes": classes}))


def list_files(folder: epath.Path, what: str) -> dict[str, str]:
    """Paths of all files in the folder, also by name alone, where the one least deep counts; hidden files do not.

    One walk costs less than 100,000 questions whether a file is there.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of {what} at {folder}")
    files = []
    for path, names in _folders(folder):
        within = path.relative_to(folder).as_posix()
        files += [name if within == "." else f"{within}/{name}" for name in names if not name.startswith(".")]
    found = {file: file for file in files}
    for file in sorted(files, key=lambda file: (file.count("/"), file)):
        found.setdefault(file.rpartition("/")[2], file)
    return found


def _folders(folder: epath.Path) -> Iterator[tuple[epath.Path, list[str]]]:
    """All folders within, and the files in each. Links to folders are followed, once each, where there are any."""
    if "://" in os.fspath(folder):
        yield from ((path, names) for path, _, names in folder.walk())
        return
    seen = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield epath.Path(path), names


def _check_present(files: list[str], there: dict[str, str], folder: epath.Path, path: epath.Path) -> None:
    if missing := [file for file in files if file not in there]:
        raise FileNotFoundError(
            f"{path} names {missing[0]}, which is not in {folder} ({len(missing)} of {len(files)} files are missing)"
        )


def _read_json(path: epath.Path) -> dict:
    if not path.exists():
        raise FileNotFoundError(f"there is no panoptic annotation at {path}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    match content:
        case {"images": list(), "annotations": list(), "categories": list()}:
            return content
    raise ValueError(f"{path} is not in COCO's panoptic format: it lacks a list of images, annotations or categories")


def _area(area: object) -> int:
    """Pixels; -1 where the json has none."""
    if area is None:
        return -1
    if not isinstance(area, (int, float)) or area != int(area) or area < 0:
        raise ValueError(f"an area is {area!r}, which is no number of pixels")
    return int(area)


def _fault(error: Exception) -> str:
    return f"an entry lacks {error}" if isinstance(error, KeyError) else str(error)
