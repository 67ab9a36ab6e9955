"""`fcclip annotate`: makes the annotations that a benchmark is evaluated on."""

import argparse
import importlib
import pathlib
import time

from fcclip_jax import command_line

HELP = "make the annotations that a benchmark is evaluated on"
DESCRIPTION = """\
Makes a benchmark's annotations from its archives, as the official project's scripts do. COCO and Mapillary
Vistas need none. To resume after an interruption, repeat the command."""
EPILOG = """\
examples:
  fcclip annotate ade20k --root datasets
  fcclip annotate cityscapes --root datasets --splits val

inputs -> outputs, below the folder that contains the dataset's:
  ade20k          ADEChallengeData2016: images, annotations, annotations_instance
                  -> ADEChallengeData2016: annotations_detectron2, ade20k_panoptic_SPLIT and .json,
                  ade20k_instance_SPLIT.json
  ade20k_full     ADE20K_2021_17_01/images -> ADE20K_2021_17_01: images_detectron2, annotations_detectron2
  pascal_context  VOCdevkit/VOC2010: JPEGImages, trainval, trainval_merged.json
                  -> pascal_ctx_d2: images, annotations_ctx59, annotations_ctx459
  pascal_voc      VOCdevkit/VOC2012: JPEGImages, SegmentationClass, ImageSets/Segmentation
                  -> pascal_voc_d2: images, annotations_pascal20, annotations_pascal21
  cityscapes      cityscapes/gtFine/SPLIT -> cityscapes/gtFine: cityscapes_panoptic_SPLIT and .json,
                  SPLIT/CITY/*_labelTrainIds.png
For ade20k_full, pascal_context and pascal_voc, prepared_SPLIT.json is written last and holds the number of images.

exit codes: 0 all files are written; 2 stopped, with the reason; 130 interrupted.
"""
MEMORY_ADVICE = "close other programs"

DATASETS = ("ade20k", "ade20k_full", "pascal_context", "pascal_voc", "cityscapes")
"""The modules of fcclip_jax.data.annotations that make annotations."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", choices=DATASETS, help="the dataset to annotate")
    parser.add_argument(
        "--root",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="the folder that contains the dataset's folder, such as ADEChallengeData2016; or the dataset's folder itself",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=("train", "val"),
        default=("train", "val"),
        metavar="SPLIT",
        help="train, val or both (default: both); evaluation needs val alone",
    )


def run(arguments: argparse.Namespace) -> int:
    from fcclip_jax.data.annotations import jobs

    dataset = importlib.import_module(f"fcclip_jax.data.annotations.{arguments.dataset}")
    plans = {split: dataset.plan(arguments.root, split) for split in dict.fromkeys(arguments.splits)}
    started = time.perf_counter()
    written = jobs.run(plans)
    seconds = time.perf_counter() - started
    for split, plan in plans.items():
        images = len(plan.jobs)
        whole = "" if images == plan.official_count else f" of the official {plan.official_count}"
        print(f"{split}: {images}{whole} images")
    print(f"All files are complete; this run wrote {written} of them in {seconds:.1f} s.")
    return command_line.DONE
