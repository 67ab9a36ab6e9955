"""The nine benchmarks of the paper: where their files lie, and their annotated images."""

import copy
import difflib
import hashlib
import io
import json
import operator
import os
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8, UInt16
from PIL import Image
from tqdm import tqdm

from fcclip_jax.conventions import CITYSCAPES_LABELS, IGNORE, IMAGE_SUFFIXES, MAX_SIDE, SHORT_SIDE, TASKS
from fcclip_jax.data import images
from fcclip_jax.data.decoding import decode_ids
from fcclip_jax.data.folder import FolderDataset, list_files
from fcclip_jax.metrics.panoptic import Truth
from fcclip_jax.text.vocabulary import Vocabulary


class LabelMaps(NamedTuple):
    """Images of class numbers, one for each photograph."""

    folder: str
    suffix: str
    """What replaces the photograph's own."""
    first: int = 0
    """The number of the first class; smaller ones do not count."""


class PanopticFiles(NamedTuple):
    json: str
    pngs: tuple[str, ...]
    """The first that is there: archives unpack to different places."""
    image_name: str | None = None
    """An image's file by its id, where the json names one that is not there."""


class Benchmark(NamedTuple):
    """A row of the table; paths are relative to the data set's own folder, as it is officially laid out."""

    title: str
    folder: str
    """What its own folder is called beside others."""
    images: str
    vocabulary: str
    number: int
    """How many images there are officially."""
    image_suffix: str = ".jpg"
    panoptic: PanopticFiles | None = None
    labels: LabelMaps | None = None
    """None takes the classes of the panoptic segments."""
    instances: str | None = None
    """Annotations in COCO's format."""
    instance_ids: LabelMaps | None = None
    """Cityscapes' own way to annotate instances."""
    prepared_by: str = ""
    """The command that makes what the official download lacks."""
    count_file: str | None = None
    """Where this command says, when it is done, how many images there are; for sets that no json speaks of."""
    short_side: int = SHORT_SIDE
    max_side: int = MAX_SIDE

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it is annotated for."""
        there = {"panoptic": self.panoptic, "semantic": True, "instances": self.instances or self.instance_ids}
        return tuple(task for task in TASKS if there[task])


BENCHMARKS: dict[str, Benchmark] = {
    "coco": Benchmark(
        title="COCO",
        folder="coco",
        images="val2017",
        vocabulary="coco_panoptic",
        number=5000,
        panoptic=PanopticFiles(
            "annotations/panoptic_val2017.json", ("annotations/panoptic_val2017", "panoptic_val2017")
        ),
        instances="annotations/instances_val2017.json",
    ),
    "ade20k": Benchmark(
        title="ADE20K",
        folder="ADEChallengeData2016",
        images="images/validation",
        vocabulary="ade20k_150",
        number=2000,
        panoptic=PanopticFiles("ade20k_panoptic_val.json", ("ade20k_panoptic_val",)),
        labels=LabelMaps("annotations/validation", ".png", first=1),
        instances="ade20k_instance_val.json",
        prepared_by="fcclip annotate ade20k",
    ),
    "cityscapes": Benchmark(
        title="Cityscapes",
        folder="cityscapes",
        images="leftImg8bit/val",
        vocabulary="cityscapes",
        number=500,
        image_suffix="_leftImg8bit.png",
        panoptic=PanopticFiles(
            "gtFine/cityscapes_panoptic_val.json", ("gtFine/cityscapes_panoptic_val",), "{}_leftImg8bit.png"
        ),
        labels=LabelMaps("gtFine/val", "_gtFine_labelTrainIds.png"),
        instance_ids=LabelMaps("gtFine/val", "_gtFine_instanceIds.png"),
        prepared_by="fcclip annotate cityscapes",
        short_side=1024,
        max_side=2560,
    ),
    "mapillary": Benchmark(
        title="Mapillary Vistas",
        folder="mapillary_vistas",
        images="validation/images",
        vocabulary="mapillary_vistas",
        number=2000,
        panoptic=PanopticFiles("validation/panoptic/panoptic_2018.json", ("validation/panoptic",)),
        labels=LabelMaps("validation/labels", ".png"),
        short_side=1024,
        max_side=2560,
    ),
    "ade20k_847": Benchmark(
        title="A-847",
        folder="ADE20K_2021_17_01",
        images="images_detectron2/validation",
        vocabulary="ade20k_847",
        number=2000,
        labels=LabelMaps("annotations_detectron2/validation", ".tif"),
        prepared_by="fcclip annotate ade20k_full",
        count_file="prepared_val.json",
    ),
    "pascal_context_459": Benchmark(
        title="PC-459",
        folder="pascal_ctx_d2",
        images="images/validation",
        vocabulary="pascal_context_459",
        number=5104,
        labels=LabelMaps("annotations_ctx459/validation", ".tif"),
        prepared_by="fcclip annotate pascal_context",
        count_file="prepared_val.json",
    ),
    "pascal_context_59": Benchmark(
        title="PC-59",
        folder="pascal_ctx_d2",
        images="images/validation",
        vocabulary="pascal_context_59",
        number=5104,
        labels=LabelMaps("annotations_ctx59/validation", ".png"),
        prepared_by="fcclip annotate pascal_context",
        count_file="prepared_val.json",
    ),
    "pascal_voc_21": Benchmark(
        title="PAS-21",
        folder="pascal_voc_d2",
        images="images/validation",
        vocabulary="pascal_voc_21",
        number=1449,
        labels=LabelMaps("annotations_pascal21/validation", ".png"),
        prepared_by="fcclip annotate pascal_voc",
        count_file="prepared_val.json",
    ),
    "pascal_voc_20": Benchmark(
        title="PAS-20",
        folder="pascal_voc_d2",
        images="images/validation",
        vocabulary="pascal_voc_20",
        number=1449,
        labels=LabelMaps("annotations_pascal20/validation", ".png"),
        prepared_by="fcclip annotate pascal_voc",
        count_file="prepared_val.json",
    ),
}


class Example(NamedTuple):
    """One photograph with all that is known of it."""

    image: UInt8[np.ndarray, "H W 3"]
    panoptic: Truth | None
    semantic: UInt16[np.ndarray, "H W"]
    """Classes, counted from 0 in the vocabulary; IGNORE does not count."""
    instance_ids: UInt16[np.ndarray, "H W"] | None
    """Of Cityscapes, as evaluators.cityscapes reads them."""


class Examples:
    """Annotated photographs in a fixed order; all that can be checked without decoding one has been checked."""

    def __init__(
        self,
        name: str,
        vocabulary: Vocabulary,
        image_ids: Sequence[int | str],
        image_paths: Sequence[epath.Path],
        *,
        panoptic: FolderDataset | None,
        label_paths: Sequence[epath.Path] | None,
        first_label: int = 0,
        instances: dict | None = None,
        instance_id_paths: Sequence[epath.Path] | None = None,
    ):
        """`open_benchmark`, `open_panoptic` and `open_semantic` are the ways here.

        Raises:
            ValueError: an image and its annotation are of different sizes, or one of them is no image.
        """
        self.name, self.vocabulary = name, vocabulary
        self.image_ids, self.image_paths = list(image_ids), list(image_paths)
        self._panoptic, self._label_paths, self._first_label = panoptic, label_paths, first_label
        self._instance_id_paths = instance_id_paths
        self.instances = instances
        """Annotations in COCO's format, of these images alone; None where there are none."""
        self._rows = list(range(len(self.image_paths)))
        """Where each is in the annotation."""
        self._class_of = {entry.id: index for index, entry in enumerate(vocabulary.classes)}
        self._sizes = self._check_sizes()

    def __len__(self) -> int:
        return len(self.image_paths)

    def __getitem__(self, index: int) -> Example:
        """Raises OSError or ValueError, in one sentence, for what cannot be read."""
        image, row = images.load_image(os.fspath(self.image_paths[index])), self._rows[index]
        truth = None if self._panoptic is None else self._truth(row)
        if self._label_paths is not None:
            semantic = read_labels(self._label_paths[row], self._first_label, self.vocabulary)
        else:
            semantic = classes_of(truth)
        instance_ids = None
        if self._instance_id_paths is not None:
            instance_ids = read_instance_ids(self._instance_id_paths[row])
        maps = (("panoptic map", truth and truth.id_map), ("label map", semantic), ("map of instances", instance_ids))
        for what, found in maps:
            if found is not None and found.shape != image.shape[:2]:
                raise ValueError(_mismatch(self.image_paths[index], image.shape[:2], what, found.shape))
        return Example(image, truth, semantic, instance_ids)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image."""
        return [self._sizes[row] for row in self._rows]

    @property
    def has_panoptic(self) -> bool:
        return self._panoptic is not None

    def spread(self, number: int) -> "Examples":
        """So many of them, evenly spread."""
        chosen = np.linspace(0, len(self) - 1, min(number, len(self))).round().astype(int).tolist()
        kept = copy.copy(self)
        kept.image_ids, kept.image_paths, kept._rows = (
            [values[place] for place in chosen] for values in (self.image_ids, self.image_paths, self._rows)
        )
        return kept

    def digest(self) -> str:
        """Tells sets of images apart: a check sum of what they are called, in their order."""
        return hashlib.sha256(json.dumps([self.name, *map(str, self.image_ids)]).encode()).hexdigest()

    def annotation_digest(self) -> str:
        """Tells annotations apart: a check sum of what the jsons say, and of the maps' sizes in bytes."""
        panoptic, pngs = (self._panoptic.digest, self._panoptic.png_paths) if self._panoptic else (None, None)
        maps = (pngs, self._label_paths, self._instance_id_paths)
        sizes = [path.stat().length for paths in maps for path in paths or ()]
        content = [panoptic, sizes, self._first_label, self.vocabulary.ignore_label, self.instances]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _truth(self, row: int) -> Truth:
        record = self._panoptic[row]
        try:
            id_map = decode_ids(record.panoptic)
        except ValueError as error:
            raise ValueError(f"{self._panoptic.png_paths[row]}: {error}") from error
        ids, categories, crowds = record.segments.T
        pixels = id_map.ravel()
        begins = np.flatnonzero(np.diff(pixels, prepend=-1))  # of runs of one id: far fewer than pixels
        there, run_of = np.unique(pixels[begins], return_inverse=True)
        if (unlisted := np.setdiff1d(there, [0, *ids])).size:
            raise ValueError(
                f"{self._panoptic.png_paths[row]} has the segment id {unlisted[0]}, which its segments_info lacks"
            )
        areas = self._panoptic.areas(row)
        if areas is not None:
            counted = dict(
                zip(there, np.bincount(run_of, np.diff(begins, append=pixels.size)).astype(int), strict=True)
            )
            short = [(id, area) for id, area in zip(ids, areas, strict=True) if area < counted.get(id, 0)]
            if short:  # or its IoU could pass 1
                id, area = short[0]
                raise ValueError(
                    f"{self._panoptic.png_paths[row]} has {counted[id]} pixels of the segment {id}, and its segments_info"
                    f" an area of {area}"
                )
        classes = np.asarray([self._class_of[category] for category in categories.tolist()], np.int64)
        return Truth(id_map, ids, classes, crowds.astype(bool), areas)

    def _check_sizes(self) -> list[tuple[int, int]]:
        others = [("panoptic map", self._panoptic.png_paths)] if self._panoptic else []
        others += [("label map", self._label_paths)] if self._label_paths is not None else []
        others += [("map of instances", self._instance_id_paths)] if self._instance_id_paths is not None else []
        sizes = []
        for row, path in enumerate(self.image_paths):
            shape = _upright_shape(path)
            sizes.append(shape)
            for what, paths in others:
                found = _upright_shape(paths[row])
                if found != shape:
                    raise ValueError(_mismatch(path, shape, what, found))
        for path, shape, entry in zip(
            self.image_paths, sizes, self.instances["images"] if self.instances else (), strict=False
        ):
            if (entry["height"], entry["width"]) != shape:
                raise ValueError(_mismatch(path, shape, "instance annotation", (entry["height"], entry["width"])))
        return sizes


def open_benchmark(name: str, root: epath.PathLike, tasks: Collection[str] | None = None) -> Examples:
    """One of BENCHMARKS.

    root: its own folder, or the one that this lies in.
    tasks: what is evaluated, by default all that it is annotated for; files for the others need not be there.

    Raises:
        ValueError: there is no such benchmark, or its files do not fit together.
        FileNotFoundError: a file is missing; the sentence says which command makes it, if one does.
    """
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.3)
        hint = f"did you mean {close[0]}? There are" if close else "there are"
        raise ValueError(f"no benchmark is called {name!r}: {hint} {', '.join(BENCHMARKS)} and custom")
    row = BENCHMARKS[name]
    above = epath.Path(root).expanduser()
    folder = above / row.folder if (above / row.folder).is_dir() else above
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of {row.title} at {root}; give one that holds {row.images}")
    vocabulary = Vocabulary.load(row.vocabulary)
    if tasks is None:
        tasks = row.tasks
    if lacking := [task for task in tasks if task not in row.tasks]:
        raise ValueError(f"{row.title} has no {lacking[0]} annotation; set --config.{lacking[0]}=False")
    try:
        source, instances = None, None
        if row.panoptic and ("panoptic" in tasks or row.labels is None):
            pngs = next((path for path in row.panoptic.pngs if (folder / path).is_dir()), row.panoptic.pngs[0])
            source = FolderDataset(
                folder / row.images,
                folder / row.panoptic.json,
                folder / pngs,
                vocabulary,
                image_name=row.panoptic.image_name,
            )
            ids, paths = source.image_ids, source.image_paths
        else:
            paths = _images_in(folder / row.images)
            _check_count(row, folder, len(paths))
            _check_photographs(row, folder, paths)
            ids = [path.name.removesuffix(row.image_suffix) for path in paths]
        labels, instance_ids = (
            maps and _labels_of(paths, folder / maps.folder, row.image_suffix, maps.suffix)
            for maps in (
                row.labels if "semantic" in tasks or source is None else None,
                row.instance_ids if "instances" in tasks else None,
            )
        )
        if row.instances and "instances" in tasks:
            instances = _read_instances(folder / row.instances, ids, vocabulary)
    except FileNotFoundError as error:
        made = f"; {_command(row, folder)} makes what the download lacks" if row.prepared_by else ""
        raise FileNotFoundError(f"{error}{made}") from None
    return Examples(
        name,
        vocabulary,
        ids,
        paths,
        panoptic=source,
        label_paths=labels,
        first_label=row.labels.first if row.labels else 0,
        instances=instances,
        instance_id_paths=instance_ids,
    )


def open_panoptic(
    images: epath.PathLike,
    panoptic_json: epath.PathLike,
    panoptic_pngs: epath.PathLike,
    vocabulary: Vocabulary | None = None,
) -> Examples:
    """A data set of your own in COCO's panoptic format; raises as FolderDataset and Examples do.

    vocabulary: by default the json's own categories.
    """
    source = FolderDataset(images, panoptic_json, panoptic_pngs, vocabulary)
    return Examples(
        source.name, source.vocabulary, source.image_ids, source.image_paths, panoptic=source, label_paths=None
    )


def open_semantic(
    images: epath.PathLike, labels: epath.PathLike, vocabulary: Vocabulary, *, first_label: int = 0
) -> Examples:
    """A data set of your own: a folder of images, and one of label maps with the same names, in the same folders if any.

    Labels are class numbers from `first_label`, 8 or 16 bits; the vocabulary's ignore_label does not count. All label maps are
    read, for nobody has checked them before.

    Raises:
        ValueError, FileNotFoundError: as of Examples; a label map is missing or damaged, or has a number that is of no class;
            or no pixel of any counts.
    """
    above = epath.Path(images).expanduser()
    paths = _images_in(above)
    names = [path.relative_to(above).as_posix().rpartition(".")[0] for path in paths]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} images in {above} are called {name}: which of them a label map is for, nobody knows")
    folder = epath.Path(labels).expanduser()
    there = {name.rpartition(".")[0]: folder / path for name, path in list_files(folder, "label maps").items()}
    # Of several images with one name, each needs a label map in the folder of its own.
    alone = Counter(path.stem for path in paths)
    found = [there.get(name) or (there.get(path.stem) if alone[path.stem] == 1 else None)
             for name, path in zip(names, paths, strict=True)]  # fmt: skip
    if missing := [path for path, label_path in zip(paths, found, strict=True) if label_path is None]:
        raise FileNotFoundError(
            f"{missing[0]} has no label map in {folder} ({len(missing)} of {len(paths)} images have none)"
        )
    examples = Examples(
        folder.name,
        vocabulary,
        names,
        paths,
        panoptic=None,
        label_paths=found,
        first_label=first_label,
    )
    with ThreadPoolExecutor() as pool:
        maps = pool.map(lambda path: bool((read_labels(path, first_label, vocabulary) != IGNORE).any()), found)
        counts = list(tqdm(maps, total=len(found), desc="checking label maps", unit="map", disable=None))
    if not any(counts):
        last = first_label + len(vocabulary.classes) - 1
        raise ValueError(f"no label map in {folder} has a label from {first_label} to {last}: no pixel counts")
    return examples


def read_labels(path: epath.Path, first: int, vocabulary: Vocabulary) -> UInt16[np.ndarray, "H W"]:
    """A label map's classes.

    first: the number of the first class.

    Raises:
        ValueError: the file is damaged or has colours, or a number is that of no class.
    """
    data = path.read_bytes()
    try:
        labels = _label_numbers(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    known = np.full(max(1 << 8 * labels.itemsize, first + len(vocabulary.classes)), -1, np.int32)
    known[first : first + len(vocabulary.classes)] = np.arange(len(vocabulary.classes))
    # Numbers below the first class, such as ADE20K's 0 for everything else, do not count.
    known[:first] = IGNORE
    if vocabulary.ignore_label is not None and vocabulary.ignore_label < len(known):
        known[vocabulary.ignore_label] = IGNORE
    classes = known[labels]
    if (classes < 0).any():
        unknown = labels[classes < 0][0]
        raise ValueError(
            f"{path} has the label {unknown}, which is none of the {len(vocabulary.classes)} classes of"
            f" {vocabulary.name!r} from {first} on"
        )
    return classes.astype(np.uint16)


def read_instance_ids(path: epath.Path) -> UInt16[np.ndarray, "H W"]:
    """Cityscapes' *_instanceIds.png.

    Raises:
        ValueError: the file is damaged or has colours, or an id is that of no label.
    """
    try:
        ids = _label_numbers(path.read_bytes()).astype(np.uint16)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if (label := int(ids.max()) // 1000) >= CITYSCAPES_LABELS:
        raise ValueError(f"{path} has the id {ids.max()}, and there is no label {label}")
    return ids


def classes_of(truth: Truth) -> UInt16[np.ndarray, "H W"]:
    """The semantic map of a panoptic annotation, crowds included, as COCO's official one is made."""
    order = np.argsort(truth.ids)
    ids = truth.ids[order]
    if not len(ids):
        return np.full(truth.id_map.shape, IGNORE, np.uint16)
    rows = np.minimum(np.searchsorted(ids, truth.id_map), len(ids) - 1)
    found = ids[rows] == truth.id_map
    return np.where(found, truth.classes[order][rows], IGNORE).astype(np.uint16)


def _label_numbers(data: bytes) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    # OpenCV would turn a palette into colours; its numbers are what counts.
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in ("P", "L", "1"):
                return images.stored_numbers(image).astype(np.uint8)
            if image.mode.startswith("I"):
                numbers = np.asarray(image)
                if numbers.min() < 0 or numbers.max() > IGNORE:
                    raise ValueError("labels are numbers from 0 to 65535")
                return numbers.astype(np.uint16)
            mode = image.mode
    except (Exception, Image.DecompressionBombError) as error:
        raise ValueError(f"the label map cannot be read: {error}") from error
    raise ValueError(f"a label map has one channel of class numbers, not Pillow's mode {mode}")


def _images_in(folder: epath.Path) -> list[epath.Path]:
    there = sorted(set(list_files(folder, "images").values()))
    found = [folder / path for path in there if os.path.splitext(path.lower())[1] in IMAGE_SUFFIXES]
    if not found:
        raise FileNotFoundError(f"there are no images in {folder}")
    return found


def _check_count(row: Benchmark, folder: epath.Path, count: int) -> None:
    """Raises ValueError if a set that no json speaks of is not whole: as its preparation left it, or else as officially."""
    if row.count_file is None:
        return
    path, whole = folder / row.count_file, row.number
    if path.exists():
        try:
            whole = operator.index(json.loads(path.read_bytes())["images"])
        except (KeyError, TypeError, ValueError, RecursionError):
            raise ValueError(f"{path} is damaged; repeat {_command(row, folder)}") from None
    if count > whole:
        raise ValueError(
            f"{folder / row.images} has {count} images, and its preparation had {whole}: remove those that are not of the data"
            f" set, or the folder, and repeat {_command(row, folder)}"
        )
    if count < whole:
        raise ValueError(
            f"{folder / row.images} has {count} of {whole} images: its preparation was not finished, or files were lost since;"
            f" repeat {_command(row, folder)}"
        )


def _check_photographs(row: Benchmark, folder: epath.Path, paths: Sequence[epath.Path]) -> None:
    """Raises ValueError if there are label maps of photographs that are not there."""
    stems = {path.name.removesuffix(row.image_suffix) for path in paths}
    maps = folder / row.labels.folder
    names = (path.name for path in map(epath.Path, set(list_files(maps, "label maps").values())))
    lost = sorted(name for name in names
                  if name.endswith(row.labels.suffix) and name.removesuffix(row.labels.suffix) not in stems)  # fmt: skip
    if lost:
        raise ValueError(
            f"{maps} has {lost[0]}, whose photograph is not in {folder / row.images} ({len(lost)} are missing)"
        )


def _command(row: Benchmark, folder: epath.Path) -> str:
    # Some sets are prepared beside the folder that they are made of; the one that holds both always will do.
    root = folder.parent if folder.name == row.folder else folder
    return f"{row.prepared_by} --root {shlex.quote(str(root))}"


def _labels_of(paths: Sequence[epath.Path], folder: epath.Path, suffix: str, replacement: str) -> list[epath.Path]:
    there = list_files(folder, "label maps")
    names = [path.name.removesuffix(suffix) + replacement for path in paths]
    if missing := [name for name in names if name not in there]:
        raise FileNotFoundError(
            f"{missing[0]} is not in {folder} ({len(missing)} of {len(names)} images have no label map)"
        )
    return [folder / there[name] for name in names]


def _read_instances(path: epath.Path, ids: Sequence[int | str], vocabulary: Vocabulary) -> dict:
    """What is said of these images, in their order, checked as far as pycocotools reads it."""
    if not path.exists():
        raise FileNotFoundError(f"there is no instance annotation at {path}")
    try:
        content = json.loads(path.read_bytes())
        entries = {entry["id"]: entry for entry in content["images"]}
        if missing := [id for id in ids if id not in entries]:
            raise ValueError(f"it lacks the image {missing[0]!r} ({len(missing)} of {len(ids)} images are missing)")
        wanted = {id: (entries[id]["height"], entries[id]["width"]) for id in ids}
        known = {entry.id for entry in vocabulary.classes if entry.is_thing}
        annotations = [entry for entry in content["annotations"] if entry["image_id"] in wanted]
        for entry in annotations:
            _check_instance(entry, wanted[entry["image_id"]])
        unknown = [entry["category_id"] for entry in annotations if entry["category_id"] not in known]
        count = len({entry["id"] for entry in annotations})
        categories = [{"id": entry["id"], "name": entry["name"]} for entry in content["categories"]]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        lacks = f"an entry lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is no annotation of these images in COCO's format: {lacks}") from None
    if unknown:
        raise ValueError(
            f"{path} has the category {unknown[0]}, which is none of the things of the vocabulary {vocabulary.name!r}"
        )
    if count < len(annotations):
        raise ValueError(
            f"{path} has {len(annotations)} annotations of these images with {count} ids: each needs its own"
        )
    # pycocotools takes the id 0 for no annotation.
    numbered = [{**entry, "id": number} for number, entry in enumerate(annotations, start=1)]
    return {"images": [entries[id] for id in ids], "annotations": numbered, "categories": categories}


def _check_instance(entry: dict, size: tuple[int, int]) -> None:
    """Raises KeyError or ValueError for what pycocotools would stumble over, or read as something else."""
    segmentation, area, crowd = entry["segmentation"], entry["area"], entry["iscrowd"]
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != size:
            raise ValueError(
                f"the mask of the annotation {entry['id']} is {segmentation['size'][1]}x{segmentation['size'][0]} pixels, and"
                f" its image {size[1]}x{size[0]}"
            )
        whole = isinstance(segmentation["counts"], (str, list))
    else:
        polygons = segmentation if isinstance(segmentation, list) else []
        whole = bool(polygons) and all(isinstance(each, list) and len(each) >= 6 for each in polygons)
    if not whole:
        raise ValueError(f"the annotation {entry['id']} has neither polygons nor an RLE")
    if not isinstance(area, (int, float)) or crowd not in (0, 1):
        raise ValueError(f"the annotation {entry['id']} has the area {area!r} and the iscrowd {crowd!r}")


def _upright_shape(path: epath.Path) -> tuple[int, int]:
    """(height, width) from the file's head, as load_image turns it."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            return image.size if turned else image.size[::-1]
    except (Exception, Image.DecompressionBombError) as error:
        reason = "it is not an image that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"cannot read {path}: {reason}") from error


_ORIENTATION = 0x0112  # the EXIF tag


def _mismatch(path: epath.Path, shape: tuple[int, int], what: str, found: tuple[int, int]) -> str:
    return f"{path} is {shape[1]}x{shape[0]} pixels, and its {what} {found[1]}x{found[0]}"
