"""Reads and checks json files in COCO's panoptic format: each image has one annotation, each number one meaning."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int

from fcclip_jax.text.vocabulary import Vocabulary, color_of, split_synonyms

MAX_ID = (1 << 24) - 1
"""Segment ids are the three bytes of a PNG's pixel. 0 is void."""

ImageId = int | str


class PanopticJson(NamedTuple):
    """What a json contains, with the images in the order of its annotations."""

    path: epath.Path
    categories: list[dict]
    image_ids: list[ImageId]
    files: list[str]
    """The image files' names, as they are written."""
    png_files: list[str]
    segments: Int[np.ndarray, "N 3"]
    """(id, category id, 1 if it is a crowd) of the segments of all images, one image after the other."""
    areas: Int[np.ndarray, " N"]
    """The segments' areas in pixels; -1 where the json has none."""
    ends: Int[np.ndarray, " B"]
    """The number of segments of each image and all images before it."""

    def where(self, row: int) -> str:
        """Returns what a message calls a segment."""
        image = int(np.searchsorted(self.ends, row, side="right"))
        return f"the segment {self.segments[row, 0]} of {self.png_files[image]} in {self.path}"


def read_panoptic(path: epath.Path) -> PanopticJson:
    """Reads a json in COCO's panoptic format.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the json has another format, does not annotate each of its images exactly once, or gives an id to two
            images, to two categories or to two segments of an image.
    """
    content = _read(path)
    try:
        images = by_id(content["images"])
        names = {id: _file_name(entry) for id, entry in images.items()}
        annotations = content["annotations"]
        image_ids = [entry["image_id"] for entry in annotations]
        times = Counter(image_ids)
        png_files = [_file_name(entry) for entry in annotations]
        counts = [len(entry["segments_info"]) for entry in annotations]
        infos = [segment for entry in annotations for segment in entry["segments_info"]]
        columns = (
            [segment["id"] for segment in infos],
            [segment["category_id"] for segment in infos],
            [segment.get("iscrowd", 0) for segment in infos],
        )
        areas = [segment.get("area") for segment in infos]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not in COCO's panoptic format: {_fault(error)}") from None
    if not annotations:
        raise ValueError(f"{path} has no annotations")
    if unknown := [id for id in image_ids if id not in images]:
        raise ValueError(f"{path} annotates the image_id {unknown[0]!r}, which is not in its list of images")
    if bare := images.keys() - times.keys():
        name = min(names[id] for id in bare)
        raise ValueError(
            f"{path} has no annotation of its image {name} ({len(bare)} of {len(images)} images have none); annotate"
            " them, or remove them from the list of images"
        )
    id, count = times.most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path} annotates the image {names[id]} {count} times; keep one annotation per image")
    check_categories(content["categories"], path)
    owners = [png for png, number in zip(png_files, counts, strict=True) for _ in range(number)]
    _check_columns(columns, owners, path)
    rows = np.array(columns, np.int64).T.reshape(-1, 3)
    areas = np.array([_area(area, row, owners, path) for row, area in enumerate(areas)], np.int64)
    files = [names[id] for id in image_ids]
    found = PanopticJson(path, content["categories"], image_ids, files, png_files, rows, areas, np.cumsum(counts))
    _check_segments(found)
    return found


def by_id(entries: Iterable[dict], key: str = "id") -> dict[ImageId, dict]:
    """Returns a json's images by their id, in their order.

    Raises:
        ValueError: an id is neither a whole number nor text, two images have one, or some are numbers and some text.
        KeyError, TypeError: an entry has no id, or is not an object.
    """
    found: dict[ImageId, dict] = {}
    for entry in entries:
        id = entry[key]
        if type(id) not in (int, str):
            name = entry.get("file_name", "without a file_name")
            raise ValueError(f"the image {name} has the id {id!r}; ids are whole numbers or text")
        if id in found:
            names = [str(each.get("file_name", "an image without a file_name")) for each in (found[id], entry)]
            both = (
                f"the image {names[0]} is listed twice"
                if names[0] == names[1]
                else f"{names[0]} and {names[1]} are listed"
            )
            raise ValueError(f"{both} with the id {id!r}; give each image its own id")
        found[id] = entry
    if len(set(map(type, found))) > 1:
        number, text = (next(id for id in found if type(id) is kind) for kind in (int, str))
        raise ValueError(f"image ids are {number!r} and {text!r}; write all as numbers, or all as text")
    return found


def vocabulary_of(categories: Sequence[dict], path: epath.PathLike) -> Vocabulary:
    """Returns the vocabulary of a json's categories, with the file's name.

    Each has "id" and "name", and may have "isthing" (1 by default), "color" (derived from the name by default) and
    "synonyms" (a list). Commas or | in a name separate synonyms too.

    Raises:
        ValueError: a category has another form, or two share an id or a name (CLIP ignores case).
    """
    check_categories(categories, path)
    ids: dict[str, int] = {}
    classes = []
    for entry in categories:
        names = [name for item in (entry["name"], *entry.get("synonyms", ())) for name in split_synonyms(item)]
        first = names[0].lower()
        if first in ids:
            raise ValueError(
                f"{path} calls both the category {ids[first]} and the category {entry['id']} {names[0]!r}; names must differ"
            )
        ids[first] = entry["id"]
        color = entry.get("color") or color_of(entry["name"])
        thing = bool(entry.get("isthing", 1))
        classes.append({"id": entry["id"], "names": names, "thing": thing, "color": color})
    name = epath.Path(path).stem
    try:
        return Vocabulary.from_json(json.dumps({"name": name, "ignore_label": None, "classes": classes}))
    except ValueError as error:
        raise ValueError(f"the categories of {path}: {error}") from None


def check_ids(ids: Int[np.ndarray, " N"], where: str) -> None:
    """Raises ValueError if a segment id of an image is that of void, or belongs to two segments."""
    if (strange := ids[(ids < 1) | (ids > MAX_ID)]).size:
        raise ValueError(f"the segment {strange[0]} of {where} is out of range; ids are from 1 to {MAX_ID}, 0 is void")
    values, counts = np.unique(ids, return_counts=True)
    if (twice := values[counts > 1]).size:
        raise ValueError(f"the segment {twice[0]} of {where} appears twice; give each segment of an image its own id")


def check_categories(categories: Sequence[Any], path: epath.PathLike) -> None:
    """Raises ValueError if a category of a json has another form than `vocabulary_of` reads, or two share an id."""
    known: dict[int, str] = {}
    for entry in categories:
        match entry:
            case {"id": id, "name": str(name)} if type(id) is int and name.strip():
                pass
            case _:
                raise ValueError(
                    f"the category {entry!r:.80} of {path} is not of the form {{'id': 1, 'name': 'cat'}}; its id is a whole"
                    " number, its name is text"
                )
        thing, synonyms = entry.get("isthing", 1), entry.get("synonyms", [])
        if not isinstance(thing, (int, float)) or thing not in (0, 1):
            raise ValueError(f"the category {name!r} of {path} has isthing {thing!r}; write 1 for things, 0 for stuff")
        if not isinstance(synonyms, list) or not all(isinstance(word, str) for word in synonyms):
            raise ValueError(
                f"the category {name!r} of {path} has the synonyms {synonyms!r:.80}; write a list of words"
            )
        if id in known:
            raise ValueError(f"{path} gives the id {id} to the categories {known[id]!r} and {name!r}; ids must differ")
        known[id] = name


def _check_columns(columns: Sequence[Sequence[Any]], owners: Sequence[str], path: epath.Path) -> None:
    """Checks all segments' ids, category ids and iscrowd; NumPy would read "5" and 5.7 as 5."""
    whole = "a whole number"
    for what, column, kinds, end, form in (
        ("id", columns[0], {int}, 2**63, whole),
        ("category_id", columns[1], {int}, 2**63, whole),
        ("iscrowd", columns[2], {int, bool}, 2, "0 or 1"),
    ):
        # Types first, and for the whole column at once: a dataset has millions of segments.
        if set(map(type, column)) <= kinds and min(column, default=0) >= 0 and max(column, default=0) < end:
            continue
        row = next(row for row, value in enumerate(column) if type(value) not in kinds or not 0 <= value < end)
        raise ValueError(
            f"the segment {columns[0][row]!r} of {owners[row]} in {path} has the {what} {column[row]!r}, not {form}"
        )


def _check_segments(found: PanopticJson) -> None:
    ids = found.segments[:, 0]
    fits = (ids >= 1) & (ids <= MAX_ID)
    if not fits.all():
        row = int(np.argmin(fits))
        raise ValueError(f"{found.where(row)} is out of range; ids are from 1 to {MAX_ID}, 0 is void")
    image = np.repeat(np.arange(len(found.ends)), np.diff(found.ends, prepend=0))
    _, first = np.unique(image * (MAX_ID + 1) + ids, return_index=True)
    if len(first) < len(ids):
        row = int(np.setdiff1d(np.arange(len(ids)), first)[0])
        raise ValueError(f"{found.where(row)} appears twice; give each segment of an image its own id")


def _read(path: epath.Path) -> dict:
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


def _file_name(entry: dict) -> str:
    name = entry["file_name"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"a file_name is {name!r}, not the text of a file's name")
    return name


def _area(area: object, row: int, owners: Sequence[str], path: epath.Path) -> int:
    """Returns an area in pixels, -1 for None."""
    if area is None:
        return -1
    if not isinstance(area, (int, float)) or not 0 <= area < 2**53 or area != int(area):
        raise ValueError(f"a segment of {owners[row]} in {path} has the area {area!r}, not a number of pixels")
    return int(area)


def _fault(error: Exception) -> str:
    return f"{error} is missing in an entry" if isinstance(error, KeyError) else str(error)
