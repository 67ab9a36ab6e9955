"""A dataset that is a folder in COCO's panoptic format."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from jaxtyping import Int

from fcclip_jax.data.records import Record
from fcclip_jax.text.vocabulary import Vocabulary, color_of, split_synonyms

MAX_ID = (1 << 24) - 1
"""Segment ids are the three bytes of a PNG's pixel."""


class FolderDataset:
    """A folder of images, a folder of panoptic PNGs, and the json that connects them; no preparation is needed."""

    def __init__(
        self,
        images: epath.PathLike,
        panoptic_json: epath.PathLike,
        panoptic_pngs: epath.PathLike,
        vocabulary: Vocabulary | None = None,
        *,
        image_name: str | None = None,
    ):
        """Checks everything that can be checked without opening an image. Images may be in subfolders.

        vocabulary: by default the json's categories.
        image_name: a template that makes an image's file name from its id, such as "{}_leftImg8bit.png"; by default the
            json's file_name.

        Raises:
            FileNotFoundError: a folder, the json, or an image or a PNG that the json names is missing.
            ValueError: the json is not in COCO's panoptic format, has a category that is not in the vocabulary, or does
                not annotate each of its images exactly once.
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
            self.image_ids: list[int | str] = [entry["image_id"] for entry in annotations]
            times = Counter(self.image_ids)
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
        if unknown := [id for id in self.image_ids if id not in files]:
            raise ValueError(f"{path} annotates the image_id {unknown[0]!r}, which is not in its list of images")
        if bare := files.keys() - times.keys():
            name = min(str(files[id]) for id in bare)
            raise ValueError(
                f"{path} has no annotation of its image {name} ({len(bare)} of {len(files)} images have none); annotate"
                " them, or remove them from the list of images"
            )
        id, count = times.most_common(1)[0]
        if count > 1:
            raise ValueError(f"{path} annotates the image {files[id]} {count} times; keep one annotation per image")
        self._files = [image_name.format(id) if image_name else files[id] for id in self.image_ids]
        self._ends = np.cumsum(counts)
        self._check_segments(path)
        _check_present(self._files, image_names, self._images, path)
        _check_present(self._png_files, png_names, self._pngs, path)
        self.image_paths = [self._images / image_names[file] for file in self._files]
        self.png_paths = [self._pngs / png_names[file] for file in self._png_files]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Record:
        start = self._ends[index - 1] if index else 0
        return Record(
            image_id=self.image_ids[index],
            file_name=self._files[index],
            image=self.image_paths[index].read_bytes(),
            panoptic=self.png_paths[index].read_bytes(),
            segments=self._segments[start : self._ends[index]],
        )

    def areas(self, index: int) -> Int[np.ndarray, " N"] | None:
        """Returns the json's area of each of a record's segments in pixels, or None if one is missing."""
        areas = self._areas[self._ends[index - 1] if index else 0 : self._ends[index]]
        return None if (areas < 0).any() else areas

    @property
    def digest(self) -> str:
        """A checksum of the json's content and of the file names, but not of the files' contents."""
        names = json.dumps([self.image_ids, self._files, self._png_files, self._ends.tolist()])
        return hashlib.sha256(names.encode() + self._segments.tobytes() + self._areas.tobytes()).hexdigest()

    def _check_segments(self, path: epath.Path) -> None:
        ids, categories = self._segments[:, 0], self._segments[:, 1]
        known = np.isin(categories, [entry.id for entry in self.vocabulary.classes])
        if not known.all():
            row = int(np.argmin(known))
            raise ValueError(
                f"{self._where(row, path)} has the category {categories[row]}, which is not in the vocabulary"
                f" {self.vocabulary.name!r}"
            )
        fits = (ids >= 0) & (ids <= MAX_ID)
        if not fits.all():
            row = int(np.argmin(fits))
            raise ValueError(f"{self._where(row, path)} is out of range; ids are from 0 to {MAX_ID}")
        image = np.repeat(np.arange(len(self)), np.diff(self._ends, prepend=0))
        _, first = np.unique(image * (MAX_ID + 1) + ids, return_index=True)
        if len(first) < len(ids):
            row = int(np.setdiff1d(np.arange(len(ids)), first)[0])
            raise ValueError(f"{self._where(row, path)} appears twice; give each segment of an image its own id")

    def _where(self, row: int, path: epath.Path) -> str:
        image = int(np.searchsorted(self._ends, row, side="right"))
        return f"the segment {self._segments[row, 0]} of {self._png_files[image]} in {path}"


def vocabulary_of(categories: Sequence[dict], name: str) -> Vocabulary:
    """Returns the vocabulary of a json's categories.

    Each has "id" and "name", and may have "isthing" (1 by default), "color" (derived from the name by default) and
    "synonyms" (a list). Commas or | in a name separate synonyms too.

    Raises:
        ValueError: a category has another form, or two share an id.
    """
    try:
        classes = [
            {
                "id": entry["id"],
                "names": [
                    name for item in (entry["name"], *entry.get("synonyms", ())) for name in split_synonyms(item)
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
    """Returns the paths, relative to the folder, of all files below it except hidden ones.

    The keys are these paths, and also the bare file names; of files with the same name, the least deep one counts. One
    walk is faster than 100,000 checks whether a file exists.

    what: the files' kind, for the error message.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of {what} {folder} does not exist")
    files = []
    for path, names in _folders(folder):
        within = path.relative_to(folder).as_posix()
        files += [name if within == "." else f"{within}/{name}" for name in names if not name.startswith(".")]
    found = {file: file for file in files}
    for file in sorted(files, key=lambda file: (file.count("/"), file)):
        found.setdefault(file.rpartition("/")[2], file)
    return found


def _folders(folder: epath.Path) -> Iterator[tuple[epath.Path, list[str]]]:
    """Yields all folders below, with the names of their files. Links to folders are followed, once each."""
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


def _check_present(files: list[str], present: dict[str, str], folder: epath.Path, path: epath.Path) -> None:
    if missing := [file for file in files if file not in present]:
        raise FileNotFoundError(
            f"{path} names {missing[0]}, which is not in {folder} ({len(missing)} of {len(files)} files are missing)"
        )


def _read_json(path: epath.Path) -> dict:
    if not path.exists():
        raise FileNotFoundError(f"the panoptic annotation {path} does not exist")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    match content:
        case {"images": list(), "annotations": list(), "categories": list()}:
            return content
    raise ValueError(f"{path} is not in COCO's panoptic format: a list of images, annotations or categories is missing")


def _area(area: object) -> int:
    """Returns an area in pixels, -1 for None."""
    if area is None:
        return -1
    if not isinstance(area, (int, float)) or area != int(area) or area < 0:
        raise ValueError(f"an area is {area!r}, not a number of pixels")
    return int(area)


def _fault(error: Exception) -> str:
    return f"{error} is missing in an entry" if isinstance(error, KeyError) else str(error)
