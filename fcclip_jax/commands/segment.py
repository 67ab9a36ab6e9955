"""`fcclip segment`: segments photographs, and writes pictures and files in COCO's formats."""

import argparse
import collections
import contextlib
import difflib
import errno
import hashlib
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fcclip_jax import command_line, devices, files, progress
from fcclip_jax.commands.class_lists import announce, read_classes
from fcclip_jax.commands.photographs import find_photos
from fcclip_jax.conventions import (
    INSTANCE_THRESHOLD,
    MAX_SIDE,
    OVERLAP_THRESHOLD,
    PRECISIONS,
    RANDOM_WEIGHTS,
    SHORT_SIDE,
    STRIDE,
    TASKS,
    WORLD_WEIGHTS,
    check_tasks,
)

HELP = "segment photographs"
DESCRIPTION = "Segments photographs into the classes that you name."
EPILOG = """\
examples:
  fcclip segment photos/*.jpg --classes "cat, remote control" --weights DIR --output out/
  fcclip segment photos/ --classes "cat|kitten, sofa, wall" --stuff "sofa, wall" --weights DIR --output out/
  fcclip segment photos/ --classes coco_panoptic --task panoptic --weights DIR --output out/

outputs, below the --output folder:
  overlays/NAME.TASK.jpg            the photographs with coloured, labelled segments
  panoptic/NAME.png, panoptic.json  COCO's panoptic format
  instances.json                    COCO's result format, with masks as RLE
  semantic/NAME.png                 class numbers, from 0; 8 bits for up to 255 classes, otherwise 16
  images.json                       images and categories; "index" is a category's number in semantic maps

NAME is the photograph's file name without its suffix. If several photographs share it, the later ones get -2, -3, ...

A run that was stopped or killed goes on where it was: the same command segments what is not done yet, and photographs that
are new or have changed; .run/ below the output lists what is done. Results for other classes, weights or options are refused in
that folder, unless --overwrite removes the earlier ones.

exit codes: 0 all photographs are segmented; 1 some were damaged or too large (they are reported and skipped);
2 stopped, with the reason, or no photograph could be segmented; 130 interrupted (finished results are kept).
"""
MEMORY_ADVICE = "try --output-size network, or a smaller --short-side, --max-side or --batch-size"
WRITERS = min(4, os.cpu_count() or 1)
"""Threads that write files while the device computes; each holds the results of one photograph."""
UNFIT_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""The errors of file names that a file system does not take: of one photograph, not of all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="image files, folders (searched at any depth) or glob patterns"
    )
    parser.add_argument(
        "--classes",
        metavar="WORDS",
        help="the classes to find, separated by commas; separate synonyms with | (cat|kitten, sofa). Or a .txt file of such"
        " words, on one line or many; a .json or .yaml file with a list of them; or the name of a shipped vocabulary (see"
        " fcclip vocabularies). Default: the words that the checkpoint was trained on",
    )
    parser.add_argument(
        "--stuff",
        default="",
        metavar="WORDS",
        help="the classes among your words that are stuff, such as sky or grass: they are not counted one by one and have"
        " no instances",
    )
    parser.add_argument(
        "--weights",
        required=True,
        metavar="DIR_OR_NAME",
        help="a checkpoint directory written by fcclip-convert or by training, local or gs://; or a name that `fcclip weights`"
        " lists, whose weights are downloaded if they are not here; or"
        f" {WORLD_WEIGHTS!r}, the small trained model inside this package; or {RANDOM_WEIGHTS!r}, a small model with random"
        " weights, to try the command",
    )
    parser.add_argument("--output", required=True, type=_folder, metavar="DIR", help="the folder for results")
    parser.add_argument(
        "--task",
        type=_tasks,
        default=TASKS,
        metavar="TASKS",
        help=f"one or more of {', '.join(TASKS)}, separated by commas (default: all)",
    )
    parser.add_argument(
        "--threshold",
        type=_share,
        metavar="SCORE",
        help="the lowest score of an instance that is written and drawn (default: the checkpoint's,"
        f" {INSTANCE_THRESHOLD} officially); 0 writes up to 100 per"
        " image, which COCO's average precision needs",
    )
    parser.add_argument(
        "--overlap-threshold",
        type=_share,
        metavar="SHARE",
        help="the lowest share of its own mask that a panoptic segment may keep when others cover it; segments that keep"
        f" less are dropped (default: the checkpoint's, {OVERLAP_THRESHOLD} officially)",
    )
    parser.add_argument(
        "--void-trust",
        type=_void_trust,
        metavar="W",
        help="from 0 to 1: how far the certainty of CLIP reduces a mask's probability of void, as OVRCOAT does. More than 0"
        " finds more objects of unseen words, and more false ones. One number is for panoptic results alone;"
        " panoptic=0.5,semantic=0.5,instances=0.5 names tasks (default: the checkpoint's, 0 for FC-CLIP)",
    )
    parser.add_argument(
        "--short-side",
        type=command_line.count,
        metavar="PIXELS",
        help="the shorter side of the resized images that the network reads (default: the checkpoint's,"
        f" {SHORT_SIDE} officially)",
    )
    parser.add_argument(
        "--max-side",
        type=command_line.count,
        metavar="PIXELS",
        help="the longest that their longer side may become; it limits the shorter side too (default: the checkpoint's,"
        f" {MAX_SIDE} officially)",
    )
    parser.add_argument(
        "--buckets",
        metavar="SIZES",
        help=f"the sizes that resized images are padded to, as HEIGHTxWIDTH,... in multiples of {STRIDE} (default: a few"
        " that suit the sides). A program is compiled for each bucket, and each size class of the results, that occurs. Images"
        " larger than all buckets are skipped",
    )
    parser.add_argument(
        "--batch-size",
        type=command_line.count,
        default=1,
        metavar="N",
        help="images of one bucket per batch (default: %(default)s). Larger batches are faster on accelerators; a CPU"
        " computes images one by one",
    )
    parser.add_argument(
        "--max-megapixels",
        type=command_line.count,
        metavar="N",
        help="refuse photographs with more megapixels than this (default: 179, Pillow's limit, since files that are made to"
        " exhaust memory have more)",
    )
    parser.add_argument(
        "--output-size",
        type=_output_size,
        default="image",
        metavar="SIZE",
        help="the size of the results: image is each photograph's own; network is the size that the network reads; a number is"
        " the longer side in pixels, for photographs that are larger. Results of a 12-megapixel photograph at its own size"
        " take longer than the network on a GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--no-overlays", action="store_true", help="write no overlays/, which take the most time of all files"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the results of an earlier run from --output first, whatever its settings were",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="bfloat16 takes half the memory, and is the fastest on most accelerators; tf32 needs an NVIDIA GPU of the"
        " Ampere generation or newer; float32 is exact to rounding (default: float32 on a CPU, tf32 on a GPU that has it,"
        " bfloat16 on a TPU)",
    )


def run(arguments: argparse.Namespace) -> int:
    # All arguments are checked before a model is loaded.
    short_side, max_side = arguments.short_side, arguments.max_side
    if short_side is not None and max_side is not None and short_side > max_side:
        raise ValueError(f"--short-side {short_side} is more than --max-side {max_side}; raise --max-side too")
    words = read_classes(arguments.classes, arguments.stuff, weights=arguments.weights)
    if not arguments.weights.strip():
        raise ValueError(
            f"--weights is empty; give a checkpoint directory, a name, {WORLD_WEIGHTS} or {RANDOM_WEIGHTS}"
        )
    output = arguments.output
    files.check_writable(output, f"--output {output}")
    found = find_photos(arguments.photos, output=output)
    paths = found.paths

    from PIL import Image

    from fcclip_jax import caching
    from fcclip_jax.commands.segment_log import SegmentLog, alone
    from fcclip_jax.inference import buckets, result_files
    from fcclip_jax.inference.segmenter import Segmenter
    from fcclip_jax.text.known_words import check_known

    options = {
        "short_side": short_side,
        "max_side": max_side,
        "buckets": None if arguments.buckets is None else buckets.parse_buckets(arguments.buckets),
        "batch_size": arguments.batch_size,
        "precision": arguments.precision,
        "output_size": arguments.output_size,
    }
    if arguments.max_megapixels is not None:
        # Pillow refuses twice as many pixels as it says here.
        Image.MAX_IMAGE_PIXELS = arguments.max_megapixels * 10**6 // 2
    devices.warn_of_unused_gpu()
    started = time.perf_counter()
    with alone(output), caching.compile_times() as compiling:
        if arguments.weights == RANDOM_WEIGHTS:
            print("warning: the weights are random, so the results are meaningless", file=sys.stderr)
        segmenter = Segmenter.load(arguments.weights, **options)
        words = announce(words, segmenter.training_vocabulary)
        threshold = segmenter.defaults.instance_threshold if arguments.threshold is None else arguments.threshold
        exporter = result_files.Exporter(
            output, words, tasks=arguments.task, threshold=threshold, overlays=not arguments.no_overlays
        )
        check_known(words, segmenter.known_words, listed="`fcclip vocabularies world`")
        settings = segmenter.settings
        about = {
            "weights": settings.pop("weights"),
            "classes": ["|".join(entry.names) for entry in words.classes],
            "vocabulary": hashlib.sha256(words.to_json().encode()).hexdigest(),
            "tasks": arguments.task,
            "threshold": threshold,
            "overlap_threshold": arguments.overlap_threshold,
            "void_trust": arguments.void_trust,
            "overlays": not arguments.no_overlays,
            **settings,
        }
        log = SegmentLog(output, about, exporter, overwrite=arguments.overwrite)
        photos = log.name(paths)
        remaining = log.unfinished(photos)
        if len(remaining) < len(photos):
            exporter.finish()  # an earlier run may have been killed before
        segmenter.set_classes(words)
        results = segmenter.stream(
            [photo.path for photo in remaining],
            tasks=arguments.task,
            overlap_threshold=arguments.overlap_threshold,
            void_trust=arguments.void_trust,
        )
        done = _export_all(results, remaining, exporter, log)
    earlier, skipped = len(photos) - len(remaining), len(remaining) - done
    if not done and not earlier:
        raise ValueError("no photograph could be segmented; the lines above give the reasons")
    seconds = time.perf_counter() - started
    print(
        f"{done} image{'s' * (done != 1)} segmented on {devices.describe()} in {seconds:.0f} s"
        f" ({sum(compiling):.0f} s compiling)"
        f"{f', {earlier} done before' if earlier else ''}{f', {skipped} skipped' if skipped else ''}."
        f" The results are in {output}.{found.remark}"
    )
    return command_line.INCOMPLETE if skipped else command_line.DONE


def _export_all(results: Iterator[tuple[int, Any]], photos: Sequence[Any], exporter: Any, log: Any) -> int:
    """Writes the results of Segmenter.stream and reports its errors. Returns the number of segmented images.

    photos, exporter, log: types of modules that are imported only when the command runs.
    """
    done, writing = 0, collections.deque[tuple[Any, Future]]()

    def skip(photo: Any, error: BaseException) -> None:
        progress.write(f"skipped: {_describe(photo.path, error)}", file=sys.stderr)

    def finish_first() -> None:
        nonlocal done
        photo, future = writing.popleft()
        error = future.exception()
        if error is None:
            entry = future.result()
            exporter.keep(entry)
            log.record(photo, entry)
            done += 1
        elif isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in UNFIT_NAMES):
            skip(photo, error)
        else:
            raise error

    with ThreadPoolExecutor(WRITERS) as pool:
        try:
            for index, result in progress.track(results, "segmenting", total=len(photos)):
                if isinstance(result, Exception):
                    skip(photos[index], result)
                    continue
                writing.append((photos[index], pool.submit(exporter.write, photos[index], result)))
                while writing and (len(writing) > WRITERS or writing[0][1].done()):
                    finish_first()
                    exporter.update()
            while writing:
                finish_first()
        except BaseException:
            # The first error says why; what is written by now counts all the same.
            with contextlib.suppress(OSError):
                while writing:
                    finish_first()
            with contextlib.suppress(OSError):
                if done:
                    exporter.finish()
            raise
        finally:
            log.close()
    if done:
        exporter.finish()
    return done


def _describe(path: pathlib.Path, error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"{path}: not enough memory; {MEMORY_ADVICE}"
    text = command_line.one_line(error)
    return text if str(path) in text else f"{path}: {text}"


def _folder(text: str) -> pathlib.Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; name a folder, or . for this one")
    return pathlib.Path(os.path.expanduser(text))  # shells leave the ~ of --output=~/out


def _output_size(text: str) -> str | int:
    try:
        return text if text in ("image", "network") else command_line.count(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not image, network or a number of pixels") from None


def _tasks(text: str) -> tuple[str, ...]:
    chosen = [part.strip() for part in text.split(",")]
    if chosen == ["all"]:
        return TASKS
    for task in chosen:
        if task not in TASKS:
            close = difflib.get_close_matches(task, TASKS, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise argparse.ArgumentTypeError(f"{task!r} is not a task{hint}: give one or more of {', '.join(TASKS)}")
    return check_tasks(chosen)


def _void_trust(text: str) -> dict[str, float]:
    if "=" not in text:
        return {TASKS[0]: _share(text)}
    chosen = {}
    for part in text.split(","):
        task, _, value = part.partition("=")
        chosen.update(dict.fromkeys(_tasks(task), _share(value)))
    return chosen


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
