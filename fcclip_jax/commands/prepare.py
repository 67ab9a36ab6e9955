"""`fcclip prepare`: writes a dataset as ArrayRecord files for training."""

import argparse
import pathlib
import time

from fcclip_jax import command_line, files

HELP = "write a dataset into a few large files for training"
DESCRIPTION = """\
Writes a panoptic dataset as ArrayRecord files, for training on many hosts or from slow disks. Training
also reads plain folders. To resume after an interruption, repeat the command."""
EPILOG = """\
examples:
  fcclip prepare coco --root datasets/coco --output prepared/coco
  fcclip prepare ade20k --root datasets/ADEChallengeData2016 --output prepared/ade20k --splits train
  fcclip prepare custom --images photos/ --json panoptic.json --pngs panoptic/ --output prepared/mine

exit codes: 0 all files are written; 2 stopped, with the reason; 130 interrupted.
"""
MEMORY_ADVICE = "close other programs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", choices=("coco", "ade20k", "custom"), help="the dataset to prepare")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR", help="the folder for the result")
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="coco, ade20k: the dataset's folder, as its archives unpack, or the folder that contains it",
    )
    parser.add_argument(
        "--splits",
        default="train,val",
        metavar="SPLITS",
        help="coco, ade20k: the splits to prepare, separated by commas (default: train,val)",
    )
    parser.add_argument("--images", metavar="DIR", help="custom: the folder of images")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="custom: the annotation in COCO's panoptic format; its categories become the classes",
    )
    parser.add_argument("--pngs", metavar="DIR", help="custom: the folder of panoptic PNGs")


def run(arguments: argparse.Namespace) -> int:
    custom = (arguments.images, arguments.json, arguments.pngs)
    if arguments.dataset == "custom":
        if None in custom or arguments.root:
            raise ValueError("a custom dataset needs --images, --json and --pngs, and no --root")
    elif not arguments.root or any(custom):
        raise ValueError(f"{arguments.dataset} needs --root, and no --images, --json or --pngs")
    files.check_writable(arguments.output, f"--output {arguments.output}")

    from fcclip_jax.data.datasets import open_folder
    from fcclip_jax.data.folder import FolderDataset
    from fcclip_jax.data.shards import write_shards

    if arguments.dataset == "custom":
        datasets = {"train": FolderDataset(*custom)}
    else:
        splits = [split.strip() for split in arguments.splits.split(",")]
        datasets = {split: open_folder(f"{arguments.dataset}_panoptic", arguments.root, split) for split in splits}
    started = time.perf_counter()
    written, images = write_shards(datasets, arguments.output), sum(map(len, datasets.values()))
    seconds = time.perf_counter() - started
    print(f"{arguments.output} contains {images} images; this run wrote {written} of them in {seconds:.1f} s.")
    return command_line.DONE
