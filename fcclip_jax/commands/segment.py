"""`fcclip segment`: segments photographs, and writes pictures and files in COCO's formats."""

import argparse
import collections
import contextlib
import errno
import hashlib
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
from fcclip_jax.commands.segment_options import add_arguments
from fcclip_jax.conventions import RANDOM_WEIGHTS, WORLD_WEIGHTS

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "MEMORY_ADVICE", "add_arguments", "run"]

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
that folder, unless --overwrite removes the earlier ones. Results stay when their photograph is deleted or damaged later.

exit codes: 0 all photographs are segmented; 1 some were damaged or too large (they are reported and skipped);
2 stopped, with the reason, or no photograph could be segmented; 130 interrupted (finished results are kept).
"""
MEMORY_ADVICE = "try --output-size network, or a smaller --short-side, --max-side or --batch-size"
WRITERS = min(4, os.cpu_count() or 1)
"""Threads that write files while the device computes; each holds the results of one photograph."""
UNFIT_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""The errors of file names that a file system does not take: of one photograph, not of all."""


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
        photo, future = writing[0]
        error = future.exception()  # an interruption of this wait leaves it in the queue
        writing.popleft()
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
