"""The command line: segments photographs in any words, prepares data for training and for evaluation."""

import argparse
import contextlib
import difflib
import glob
import importlib
import itertools
import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from tqdm import tqdm

# What takes long to import (JAX above all) is imported where it is needed: --help and typing errors are answered at once.
from fcclip_jax.text import vocabulary
from fcclip_jax.text.vocabulary import Vocabulary

TASKS = ("panoptic", "semantic", "instances")  # fcclip_jax.inference.postprocess has the same, but imports JAX
RANDOM_WEIGHTS = "random"
ANNOTATED = ("ade20k", "ade20k_full", "pascal_context", "pascal_voc", "cityscapes")
"""The modules of fcclip_jax.data.annotations."""

EXAMPLES = """\
examples:
  fcclip segment photos/*.jpg --classes "cat, remote control" --weights DIR --output out/
  fcclip segment photos/ --classes "cat|kitten, sofa, wall" --stuff "sofa, wall" --weights DIR --output out/
  fcclip segment photos/ --classes coco_panoptic --task panoptic --weights DIR --output out/

outputs (DIR/...):
  overlays/NAME.TASK.jpg            the photographs, with what was found coloured and named
  panoptic/NAME.png, panoptic.json  COCO's panoptic format
  instances.json                    COCO's result format, masks as RLE
  semantic/NAME.png                 class numbers, from 0; 8 bits for up to 255 classes, else 16
  images.json                       images and categories; "index" is a category's number in semantic maps

NAME is the photograph's own; where several photographs share one, the later ones get -2, -3, ... Files of the same name
from an earlier run are replaced.

exit code: 0 all done; 1 some photographs were skipped; 2 stopped, for the reason given, or none could be read;
130 interrupted, with the results so far written.
"""


PREPARE_EXAMPLES = """\
examples:
  fcclip prepare coco --root datasets/coco --output prepared/coco
  fcclip prepare ade20k --root datasets/ADEChallengeData2016 --output prepared/ade20k --splits train
  fcclip prepare custom --images photos/ --json panoptic.json --pngs panoptic/ --output prepared/mine

exit code: 0 all written; 2 stopped, for the reason given; 130 interrupted.
"""

ANNOTATE_EXAMPLES = """\
examples:
  fcclip annotate ade20k --root datasets
  fcclip annotate cityscapes --root datasets --splits val

what is read, and what is written (ROOT/...):
  ade20k          ADEChallengeData2016: images, annotations, annotations_instance
                  -> annotations_detectron2, ade20k_panoptic_SPLIT and .json, ade20k_instance_SPLIT.json, beside them
  ade20k_full     ADE20K_2021_17_01/images -> ADE20K_2021_17_01: images_detectron2, annotations_detectron2
  pascal_context  VOCdevkit/VOC2010: JPEGImages, trainval, trainval_merged.json
                  -> pascal_ctx_d2: images, annotations_ctx59, annotations_ctx459
  pascal_voc      VOCdevkit/VOC2012: JPEGImages, SegmentationClass, ImageSets/Segmentation
                  -> pascal_voc_d2: images, annotations_pascal20, annotations_pascal21
  cityscapes      cityscapes/gtFine/SPLIT -> cityscapes/gtFine: cityscapes_panoptic_SPLIT and .json, and
                  SPLIT/CITY/*_labelTrainIds.png
where no json speaks of all images, prepared_SPLIT.json says at the end how many there are.

exit code: 0 all written; 2 stopped, for the reason given; 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 with one sentence for what the user can put right."""
    try:
        arguments = _parser().parse_args(argv)
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        # XLA's own error for an allocation that failed; any other is a fault of ours, and its traceback is wanted.
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print("error: not enough memory; try a smaller --short-side, --max-side or --batch-size", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fcclip", description="Open-vocabulary segmentation with a single frozen convolutional CLIP.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="{segment,vocabularies,prepare,annotate}")

    command = commands.add_parser(
        "segment",
        help="segment photographs",
        description="Segments photographs in any words.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="image files, folders (with all images below them), or glob patterns"
    )
    command.add_argument(
        "--classes",
        required=True,
        metavar="WORDS",
        help="what to look for: words parted by commas, synonyms of one class by | (cat|kitten, sofa); or the name of a"
        " shipped vocabulary (see fcclip vocabularies); or a .txt file with a class a line, synonyms parted by commas",
    )
    command.add_argument(
        "--stuff",
        default="",
        metavar="WORDS",
        help="those of your words that are stuff (sky, grass): not counted one by one, and never instances",
    )
    command.add_argument(
        "--weights",
        required=True,
        metavar="DIR",
        help=f"a checkpoint directory written by fcclip-convert, local or gs://; or {RANDOM_WEIGHTS!r}: a small model"
        " with random weights, to try things out",
    )
    command.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR", help="the folder for results")
    command.add_argument(
        "--task",
        type=_tasks,
        default=TASKS,
        metavar="TASKS",
        help=f"one or more of {', '.join(TASKS)}, parted by commas (default: all)",
    )
    command.add_argument(
        "--threshold",
        type=_share,
        default=0.5,
        metavar="SCORE",
        help="the least score of an instance that is written and drawn (default: 0.5); 0 writes up to 100 an image, as"
        " COCO's average precision needs",
    )
    command.add_argument(
        "--overlap-threshold",
        type=_share,
        default=0.8,
        metavar="SHARE",
        help="panoptic segments that keep less than this share of their own mask, others being in front, are dropped"
        " (default: 0.8)",
    )
    command.add_argument(
        "--short-side",
        type=_count,
        default=800,
        metavar="PIXELS",
        help="images are resized to this shorter side for the network (default: 800)",
    )
    command.add_argument(
        "--max-side",
        type=_count,
        default=1333,
        metavar="PIXELS",
        help="... or to this longer side if that makes them smaller (default: 1333)",
    )
    command.add_argument(
        "--buckets",
        metavar="SIZES",
        help="HEIGHTxWIDTH,... in multiples of 32: the sizes that resized images are padded to, one program compiled"
        " for each that is met (default: a few that follow the sides); images larger than all are skipped",
    )
    command.add_argument(
        "--batch-size",
        type=_count,
        default=1,
        metavar="N",
        help="images of one bucket computed together (default: 1); more is faster on accelerators, and the same on a CPU,"
        " which computes them one by one",
    )
    command.set_defaults(run=_segment)

    command = commands.add_parser(
        "vocabularies",
        help="list the vocabularies that --classes knows by name",
        description="Lists the shipped vocabularies.",
    )
    command.set_defaults(run=_list_vocabularies)

    command = commands.add_parser(
        "prepare",
        help="write a dataset into few large files for training",
        description="Writes a panoptic dataset as ArrayRecord files, for training on many hosts or from slow disks; training"
        " reads plain folders too. Repeat the command to go on after an interruption.",
        epilog=PREPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("dataset", choices=("coco", "ade20k", "custom"), help="what to prepare")
    command.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR", help="a folder for the result")
    command.add_argument(
        "--root",
        metavar="DIR",
        help="coco, ade20k: the dataset's own folder, as it is unpacked, or the one that it lies in",
    )
    command.add_argument(
        "--splits",
        default="train,val",
        metavar="SPLITS",
        help="coco, ade20k: which parts of it (default: train,val)",
    )
    command.add_argument("--images", metavar="DIR", help="custom: the folder of images")
    command.add_argument(
        "--json",
        metavar="FILE",
        help="custom: the annotation in COCO's panoptic format; its categories are the classes",
    )
    command.add_argument("--pngs", metavar="DIR", help="custom: the folder of panoptic PNGs")
    command.set_defaults(run=_prepare)

    command = commands.add_parser(
        "annotate",
        help="make the annotations that a benchmark is measured on",
        description="Makes a benchmark's annotations of what its archives hold, as the official project's scripts make them;"
        " COCO and Mapillary Vistas need none. Repeat the command to go on after an interruption.",
        epilog=ANNOTATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("dataset", choices=ANNOTATED, help="which one")
    command.add_argument(
        "--root", required=True, type=pathlib.Path, metavar="DIR", help="the folder that the dataset's own lies in"
    )
    command.add_argument(
        "--splits",
        nargs="+",
        choices=("train", "val"),
        default=("train", "val"),
        metavar="SPLIT",
        help="train, val or both (default: both); evaluation needs val",
    )
    command.set_defaults(run=_annotate)
    return parser


def _tasks(text: str) -> tuple[str, ...]:
    chosen = [part.strip() for part in text.split(",")]
    if chosen == ["all"]:
        return TASKS
    for task in chosen:
        if task not in TASKS:
            close = difflib.get_close_matches(task, TASKS, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise argparse.ArgumentTypeError(f"there is no task {task!r}{hint}: name one or more of {', '.join(TASKS)}")
    return tuple(task for task in TASKS if task in chosen)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return value


def _list_vocabularies(arguments: argparse.Namespace) -> int:
    for name in vocabulary.shipped():
        classes = Vocabulary.load(name).classes
        things = sum(entry.is_thing for entry in classes)
        print(f"{name:22} {len(classes):5} classes, {things:5} of them things")
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    custom = (arguments.images, arguments.json, arguments.pngs)
    if arguments.dataset == "custom":
        if None in custom or arguments.root:
            raise ValueError("a custom dataset is given by --images, --json and --pngs, all three, and no --root")
    elif not arguments.root or any(custom):
        raise ValueError(f"{arguments.dataset} is given by its --root, and no --images, --json or --pngs")
    _check_output(arguments.output)

    from fcclip_jax.data.datasets import open_folder
    from fcclip_jax.data.folder import FolderDataset
    from fcclip_jax.data.shards import write_shards

    if arguments.dataset == "custom":
        sources = {"train": FolderDataset(*custom)}
    else:
        splits = [split.strip() for split in arguments.splits.split(",")]
        sources = {split: open_folder(f"{arguments.dataset}_panoptic", arguments.root, split) for split in splits}
    started = time.perf_counter()
    written, images = write_shards(sources, arguments.output), sum(map(len, sources.values()))
    print(
        f"{images} images are in {arguments.output}, {written} of them written now in {time.perf_counter() - started:.1f} s"
    )
    return 0


def _annotate(arguments: argparse.Namespace) -> int:
    from fcclip_jax.data.annotations import jobs

    dataset = importlib.import_module(f"fcclip_jax.data.annotations.{arguments.dataset}")
    plans = {split: dataset.plan(arguments.root, split) for split in dict.fromkeys(arguments.splits)}
    started = time.perf_counter()
    written = jobs.run(plans)
    for split, plan in plans.items():
        images = len(plan.jobs)
        whole = "" if images == plan.official_count else f", where the whole data set has {plan.official_count}"
        print(f"{split}: {images} images{whole}")
    print(f"all files are there, {written} of them written now in {time.perf_counter() - started:.1f} s")
    return 0


def _segment(arguments: argparse.Namespace) -> int:
    # All that can be wrong with the arguments, before a model is loaded.
    if arguments.short_side > arguments.max_side:
        raise ValueError(
            f"--short-side {arguments.short_side} is more than --max-side {arguments.max_side}; raise the latter too"
        )
    words = read_classes(arguments.classes, arguments.stuff)
    if not arguments.weights.strip():
        raise ValueError("--weights is empty; give a checkpoint directory, or random")
    output = arguments.output
    _check_output(output)
    paths = find_photos(arguments.photos, besides=output)

    from fcclip_jax.inference import buckets, export
    from fcclip_jax.inference.segmenter import Segmenter

    shapes = None if arguments.buckets is None else buckets.parse_buckets(arguments.buckets)
    exporter = export.Exporter(output, words, tasks=arguments.task, threshold=arguments.threshold)
    photos = export.name_photos(paths)

    options = {
        "short_side": arguments.short_side,
        "max_side": arguments.max_side,
        "buckets": shapes,
        "batch_size": arguments.batch_size,
    }
    started = time.perf_counter()
    with _compile_times() as compiling:
        if arguments.weights == RANDOM_WEIGHTS:
            print("the weights are random: this shows how things work, the results mean nothing", file=sys.stderr)
            segmenter = Segmenter.random(**options)
        else:
            segmenter = Segmenter.load(arguments.weights, **options)
        segmenter.set_classes(words)
        results = segmenter.stream(paths, tasks=arguments.task, overlap_threshold=arguments.overlap_threshold)
        done = _export_all(results, photos, exporter)
    seconds, skipped = time.perf_counter() - started, len(photos) - done
    print(
        f"{done} segmented, {skipped} skipped in {seconds:.1f} s, of which {sum(compiling):.1f} s went into compiling;"
        f" results are in {output}"
    )
    return 1 if skipped else 0


def _export_all(results: Iterator[tuple[int, Any]], photos: Sequence[Any], exporter: Any) -> int:
    """Takes what Segmenter.stream yields. Returns how many images were segmented; the others are reported."""
    done = 0
    try:
        for index, result in tqdm(results, "segmenting", total=len(photos), unit="image", disable=None):
            if isinstance(result, Exception):
                tqdm.write(f"skipped {_about(photos[index].path, result)}", file=sys.stderr)
            else:
                exporter.add(photos[index], result)
                done += 1
    except KeyboardInterrupt:
        if done:
            exporter.finish()
        raise
    if not done:
        raise ValueError("nothing could be segmented")
    exporter.finish()
    return done


def read_classes(classes: str, stuff: str = "") -> Vocabulary:
    """The vocabulary that --classes and --stuff describe.

    Raises:
        ValueError: there are no classes in it, a vocabulary or a file of that name is not there, or stuff is none of
            the words.
        OSError: the file cannot be read.
    """
    text = classes.strip()
    stuff_words = _words(stuff)
    if text in vocabulary.shipped():
        if stuff_words:
            raise ValueError(f"--stuff goes with words of your own; {text} says itself which of its classes are stuff")
        return Vocabulary.load(text)
    if text.endswith(".txt"):
        words = _read_lines(pathlib.Path(text))
    elif _means_a_vocabulary(text):
        try:
            return Vocabulary.load(text)
        except ValueError as error:
            raise ValueError(f"{error}; for a class of that name, write '{text},' with a comma") from None
    else:
        words = _words(text)
    if not words:
        raise ValueError(f"there are no classes in --classes {classes!r}; write some, such as 'cat, remote control'")
    return Vocabulary.from_words(words, stuff_words)


def _words(text: str) -> list[str]:
    """Commas part classes and bars synonyms here; in a vocabulary's words, commas part synonyms."""
    return [word.replace("|", ",") for word in text.split(",") if word.strip(" |")]


def _read_lines(path: pathlib.Path) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file of classes at {path}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from None
    return [line for line in lines if line.strip()]


def _means_a_vocabulary(text: str) -> bool:
    """Whether one bare word is closer to the name of a shipped vocabulary than to anything to be seen on a photograph."""
    if not text or set(text) & set(" ,|"):
        return False
    families = {name.split("_")[0] for name in vocabulary.shipped()}
    return "_" in text or text in families or bool(difflib.get_close_matches(text, vocabulary.shipped(), cutoff=0.8))


def find_photos(given: Sequence[str], *, besides: pathlib.Path) -> list[pathlib.Path]:
    """Files, what is in folders (sorted, all the way down), and what patterns match; each file once.

    besides: the output folder: pictures that this program has put there are no photographs.

    Raises:
        ValueError: a folder or a pattern has no images in it.
        FileNotFoundError: there is no such file.
    """
    made = {besides.resolve() / folder for folder in ("overlays", "panoptic", "semantic")}
    found = itertools.chain.from_iterable(_find(name, made) for name in given)
    unique: dict[pathlib.Path, pathlib.Path] = {}
    for path in found:
        unique.setdefault(path.resolve(), path)
    return list(unique.values())


def _find(name: str, made: set[pathlib.Path]) -> list[pathlib.Path]:
    from fcclip_jax.conventions import IMAGE_SUFFIXES

    path = pathlib.Path(name)
    if path.is_dir():
        inside = sorted(path.rglob("*"))
        found = [file for file in inside if not _hidden(file, path) and made.isdisjoint(file.resolve().parents)]
    elif path.exists():
        return [path]
    elif glob.has_magic(name):
        found = [pathlib.Path(match) for match in sorted(glob.glob(name, recursive=True))]
    else:
        raise FileNotFoundError(f"there is no photograph or folder at {name}")
    found = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    if not found:
        raise ValueError(f"there are no images in {name} ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def _hidden(file: pathlib.Path, folder: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _check_output(folder: pathlib.Path) -> None:
    """Raises OSError now for what would stop the run after its first image; makes nothing yet."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is a file; --output needs a folder")
    try:
        tempfile.TemporaryDirectory(dir=nearest).cleanup()
    except OSError as error:
        raise OSError(f"--output {folder} cannot be written: {error.strerror} in {nearest}; choose another") from None


@contextlib.contextmanager
def _compile_times() -> Iterator[list[float]]:
    """A list that gathers the seconds of each XLA compilation while it is open."""
    from jax import monitoring

    times: list[float] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            times.append(duration)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield times
    finally:
        monitoring.unregister_event_duration_listener(listen)


def _about(path: pathlib.Path, error: Exception) -> str:
    text = _one_line(error)
    return text if str(path) in text else f"{path}: {text}"


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
