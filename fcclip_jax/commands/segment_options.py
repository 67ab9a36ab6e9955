"""The options of `fcclip segment`."""

import argparse
import difflib
import math
import os
import pathlib

from fcclip_jax import command_line
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
        " the longer side in pixels, for photographs that are larger. What a photograph costs beside"
        " the network grows with the pixels of its results (default: %(default)s)",
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
        help="bfloat16 takes half the memory for weights, and multiplies fastest on accelerators that have it; tf32 needs an NVIDIA GPU of the"
        " Ampere generation or newer; float32 is exact to rounding (default: float32 on a CPU, tf32 on a GPU that has it,"
        " bfloat16 on a TPU)",
    )


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
