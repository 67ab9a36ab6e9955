"""Annotated photographs to evaluate on: one of the nine benchmarks, the miniature world, or data of the user's own."""

import dataclasses
import difflib
import hashlib
import json
import operator
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

from fcclip_jax import progress
from fcclip_jax.command_line import is_installed, missing_package
from fcclip_jax.conventions import IGNORE, IMAGE_SUFFIXES, MAP_SUFFIXES
from fcclip_jax.data import images
from fcclip_jax.data.file_names import FileNames, check_apart, list_files, stem_of
from fcclip_jax.data.folder import FolderDataset
from fcclip_jax.evaluation.benchmarks import BENCHMARKS, Benchmark
from fcclip_jax.evaluation.ground_truth import LabelMap, PanopticSource, read_instances
from fcclip_jax.evaluation.rows import Example, RecordRow, Row, size_mismatch
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.world.panoptic import EVALUATED, WorldDataset, file_name
from fcclip_jax.world.scenes import SHAPE


@dataclasses.dataclass(frozen=True)
class Examples:
    """Annotated photographs in a fixed order, after all checks that need no decoding."""

    name: str
    vocabulary: Vocabulary
    rows: Sequence[Row | RecordRow]
    sizes: Sequence[tuple[int, int]]
    """(height, width) of each photograph."""
    instances: dict | None
    """Annotations of all the dataset's photographs in COCO's instance format; None if it has none."""
    annotation_digest: str
    """A checksum of the whole dataset's annotations: what the jsons contain, and the maps' sizes in bytes."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        """Decodes one photograph; raises as Row.read does."""
        return self.rows[index].read(self.vocabulary)

    @property
    def has_panoptic(self) -> bool:
        """True if the photographs have panoptic annotations."""
        return self.rows[0].has_panoptic

    @property
    def digest(self) -> str:
        """A checksum of the photographs' ids, in their order."""
        ids = [str(row.image_id) for row in self.rows]
        return hashlib.sha256(json.dumps([self.name, *ids]).encode()).hexdigest()

    def spread(self, number: int) -> "Examples":
        """Returns at most `number` of the photographs, evenly spread."""
        chosen = np.linspace(0, len(self) - 1, min(number, len(self))).round().astype(int).tolist()
        rows, sizes = ([values[index] for index in chosen] for values in (self.rows, self.sizes))
        return dataclasses.replace(self, rows=rows, sizes=sizes)


def open_benchmark(name: str, root: epath.PathLike, tasks: Collection[str] | None = None) -> Examples:
    """Opens one of BENCHMARKS.

    root: its own folder, or the folder that contains it.
    tasks: the tasks to evaluate, by default all that are annotated; files for the others may be missing.

    Raises:
        ValueError: the benchmark does not exist, or its files do not fit together.
        FileNotFoundError: a file is missing; the message names the command that makes it, if there is one.
    """
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.3)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"{name!r} is not a benchmark: {hint}choose one of {', '.join(BENCHMARKS)} or custom")
    benchmark = BENCHMARKS[name]
    parent = epath.Path(root).expanduser()
    folder = parent / benchmark.folder if (parent / benchmark.folder).is_dir() else parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the folder of {benchmark.title} does not exist at {root}; give the folder with {benchmark.images}"
        )
    if tasks is None:
        tasks = benchmark.tasks
    if missing := [task for task in tasks if task not in benchmark.tasks]:
        raise ValueError(f"{benchmark.title} has no {missing[0]} annotation; set --config.{missing[0]}=False")
    try:
        return _open_files(name, benchmark, folder, tasks)
    except FileNotFoundError as error:
        advice = f"; make it with {_command(benchmark, folder)}" if benchmark.prepared_by else ""
        raise FileNotFoundError(f"{error}{advice}") from None


def open_world(designs: str) -> Examples:
    """Opens the miniature world's test scenes, which are annotated with seen and unseen words.

    designs: one of world.panoptic.DESIGNS.

    Raises:
        ValueError: there are no such designs.
    """
    dataset = WorldDataset("test", EVALUATED, seen_only=False, designs=designs)
    rows = [RecordRow(index, epath.Path(file_name(index)), dataset, index) for index in range(len(dataset))]
    return Examples(dataset.name, dataset.vocabulary, rows, [SHAPE] * len(rows), None, dataset.digest)


def open_panoptic(images: epath.PathLike, panoptic_json: epath.PathLike, panoptic_pngs: epath.PathLike) -> Examples:
    """Opens the user's own data in COCO's panoptic format; the json's categories are the vocabulary.

    Raises:
        ValueError, FileNotFoundError: FolderDataset refuses the files, or an image and its map differ in size.
    """
    dataset = FolderDataset(images, panoptic_json, panoptic_pngs)
    return _examples(dataset.name, dataset.vocabulary, _panoptic_rows(dataset))


def open_semantic(
    images: epath.PathLike, labels: epath.PathLike, vocabulary: Vocabulary, *, first_label: int = 0
) -> Examples:
    """Opens the user's own photographs with label maps of the same names, in the same folders if there are folders.

    Labels are class numbers of 8 or 16 bits that count from `first_label`; the vocabulary's ignore_label does not count.
    All label maps are read once, since no other program has checked them.

    Raises:
        FileNotFoundError: a label map is missing.
        ValueError: two images share a name or a label map, several files could be an image's label map, a label map is
            damaged, differs from its image in size or has a number that belongs to no class, or no pixel counts.
    """
    parent = epath.Path(images).expanduser()
    paths = _images_in(parent)
    names = [stem_of(path.relative_to(parent).as_posix()) for path in paths]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{count} images in {parent} are called {name}: rename all but one, so that its label map has one image"
        )
    folder = epath.Path(labels).expanduser()
    files = FileNames(folder, list_files(folder, "label maps", MAP_SUFFIXES), key=stem_of)
    # If images in several folders share a name, each needs a label map in the same folder.
    uses = Counter(path.stem for path in paths)
    found = [files.find(name, path, any_depth=False)
             or (files.find(path.stem, path) if uses[path.stem] == 1 else None)
             for name, path in zip(names, paths, strict=True)]  # fmt: skip
    if missing := [path for path, label_path in zip(paths, found, strict=True) if label_path is None]:
        raise FileNotFoundError(
            f"{missing[0]} has no label map in {folder} ({len(missing)} of {len(paths)} images have none); the names of"
            f" label maps end in {', '.join(sorted(MAP_SUFFIXES))}"
        )
    check_apart(found, paths, folder)
    rows = [
        Row(name, path, labels=LabelMap(label_path, first_label))
        for name, path, label_path in zip(names, paths, found, strict=True)
    ]
    examples = _examples(folder.name, vocabulary, rows, first_label=first_label)
    with ThreadPoolExecutor() as pool:
        counts = pool.map(lambda row: bool((row.labels.read(vocabulary) != IGNORE).any()), rows)
        counts = list(progress.track(counts, "checking label maps", total=len(rows), unit="map"))
    if not any(counts):
        last = first_label + len(vocabulary.classes) - 1
        raise ValueError(f"no label map in {folder} has a label from {first_label} to {last}, so no pixel counts")
    return examples


def _open_files(name: str, benchmark: Benchmark, folder: epath.Path, tasks: Collection[str]) -> Examples:
    vocabulary = Vocabulary.load(benchmark.vocabulary)
    if benchmark.panoptic and ("panoptic" in tasks or benchmark.labels is None):
        files = benchmark.panoptic
        pngs = next((path for path in files.pngs if (folder / path).is_dir()), files.pngs[0])
        paths = (folder / path for path in (benchmark.images, files.json, pngs))
        rows = _panoptic_rows(FolderDataset(*paths, vocabulary, image_name=files.image_name))
    else:
        paths = _images_in(folder / benchmark.images)
        _check_count(benchmark, folder, len(paths))
        _check_photographs(benchmark, folder, paths)
        rows = [Row(path.name.removesuffix(benchmark.image_suffix), path) for path in paths]
    first_label = benchmark.labels.first if benchmark.labels else 0
    names = [row.image_path.name.removesuffix(benchmark.image_suffix) for row in rows]
    if benchmark.labels and ("semantic" in tasks or rows[0].panoptic is None):
        paths = _find_maps(names, folder / benchmark.labels.folder, benchmark.labels.suffix)
        rows = [row._replace(labels=LabelMap(path, first_label)) for row, path in zip(rows, paths, strict=True)]
    if benchmark.instance_ids and "instances" in tasks:
        if not is_installed("cityscapesscripts"):  # it scores after the last image
            raise missing_package("cityscapesscripts", "Cityscapes' AP", "set instances to False")
        paths = _find_maps(names, folder / benchmark.instance_ids.folder, benchmark.instance_ids.suffix)
        rows = [row._replace(instance_ids=path) for row, path in zip(rows, paths, strict=True)]
    instances = None
    if benchmark.instances and "instances" in tasks:
        instances = read_instances(folder / benchmark.instances, [row.image_id for row in rows], vocabulary)
    return _examples(name, vocabulary, rows, first_label=first_label, instances=instances)


def _panoptic_rows(dataset: FolderDataset) -> list[Row]:
    ids_and_paths = zip(dataset.image_ids, dataset.image_paths, strict=True)
    return [Row(id, path, PanopticSource(dataset, index)) for index, (id, path) in enumerate(ids_and_paths)]


def _examples(
    name: str, vocabulary: Vocabulary, rows: Sequence[Row], *, first_label: int = 0, instances: dict | None = None
) -> Examples:
    """Checks sizes and makes the digest; raises ValueError for a file that is not an image, or has another size."""
    sizes = _check_sizes(rows, instances)
    panoptic = rows[0].panoptic and rows[0].panoptic.dataset.digest
    # Column by column, as the logs of earlier evaluations have it.
    maps = [row.maps() for row in rows]
    lengths = [each[column].stat().length for column in maps[0] for each in maps]
    content = [panoptic, lengths, first_label, vocabulary.ignore_label, instances]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return Examples(name, vocabulary, rows, sizes, instances, digest)


def _check_sizes(rows: Sequence[Row], instances: Mapping | None) -> list[tuple[int, int]]:
    sizes = []
    for index, row in enumerate(rows):
        size = images.upright_shape(row.image_path)
        found = {what: images.upright_shape(path) for what, path in row.maps().items()}
        if instances is not None:
            entry = instances["images"][index]
            found["instance annotation"] = (entry["height"], entry["width"])
        for what, other in found.items():
            if other != size:
                raise ValueError(size_mismatch(row.image_path, size, what, other))
        sizes.append(size)
    return sizes


def _images_in(folder: epath.Path) -> list[epath.Path]:
    found = [folder / path for path in list_files(folder, "images", IMAGE_SUFFIXES)]
    if not found:
        raise FileNotFoundError(f"{folder} has no images; their names end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def _find_maps(names: Sequence[str], folder: epath.Path, suffix: str) -> list[epath.Path]:
    """Returns each photograph's map.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: several files could be meant, or two photographs have one map.
    """
    files = FileNames(folder, list_files(folder, "label maps"))
    maps = [name + suffix for name in names]
    found = [files.find(name, "the benchmark") for name in maps]
    if missing := [name for name, path in zip(maps, found, strict=True) if path is None]:
        raise FileNotFoundError(
            f"{missing[0]} is not in {folder} ({len(missing)} of {len(maps)} images have no label map)"
        )
    check_apart(found, names, folder)
    return found


def _check_count(benchmark: Benchmark, folder: epath.Path, count: int) -> None:
    """Checks the number of images of a dataset without a json.

    Raises:
        ValueError: the number is not the one that the preparation recorded or, without a record, the official one.
    """
    if benchmark.count_file is None:
        return
    path, expected = folder / benchmark.count_file, benchmark.number
    if path.exists():
        try:
            expected = operator.index(json.loads(path.read_bytes())["images"])
        except (KeyError, TypeError, ValueError, RecursionError):
            raise ValueError(f"{path} is damaged; repeat {_command(benchmark, folder)}") from None
    if count > expected:
        raise ValueError(
            f"{folder / benchmark.images} has {count} images, but its preparation had {expected}: remove the images that do"
            f" not belong to the dataset, or remove the folder and repeat {_command(benchmark, folder)}"
        )
    if count < expected:
        raise ValueError(
            f"{folder / benchmark.images} has {count} of {expected} images: its preparation did not finish, or files were"
            f" lost later; repeat {_command(benchmark, folder)}"
        )


def _check_photographs(benchmark: Benchmark, folder: epath.Path, paths: Sequence[epath.Path]) -> None:
    """Raises ValueError if there are label maps whose photographs are missing."""
    stems = {path.name.removesuffix(benchmark.image_suffix) for path in paths}
    suffix, maps = benchmark.labels.suffix, folder / benchmark.labels.folder
    names = {path.rpartition("/")[2] for path in list_files(maps, "label maps")}
    lost = sorted(name for name in names if name.endswith(suffix) and name.removesuffix(suffix) not in stems)
    if lost:
        raise ValueError(
            f"{maps} has {lost[0]}, whose photograph is not in {folder / benchmark.images} ({len(lost)} are missing)"
        )


def _command(benchmark: Benchmark, folder: epath.Path) -> str:
    """Returns the command that prepares the dataset. Its root is the folder above, with all datasets' sources."""
    root = folder.parent if folder.name == benchmark.folder else folder
    return f"{benchmark.prepared_by} --root {shlex.quote(str(root))}"
