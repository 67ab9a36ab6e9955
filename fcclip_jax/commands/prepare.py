"""`fcclip prepare`: writes a dataset as ArrayRecord files for training, or the miniature world as a plain folder."""

import argparse
import pathlib
import time

from fcclip_jax import command_line, files

HELP = "write a dataset into a few large files for training"
DESCRIPTION = """\
Writes a panoptic dataset as ArrayRecord files, for training on many hosts or from slow disks. Training
also reads plain folders. The dataset world, emoji on procedural backgrounds, is composed and becomes such a
folder in COCO's panoptic format: train/ and val/ with images, panoptic_train/ and panoptic_val/ with maps, and
panoptic_train.json and panoptic_val.json. To resume after an interruption, repeat the command."""
EPILOG = """\
examples:
  fcclip prepare coco --root datasets/coco --output prepared/coco
  fcclip prepare ade20k --root datasets/ADEChallengeData2016 --output prepared/ade20k --splits train
  fcclip prepare custom --images photos/ --json panoptic.json --pngs panoptic/ --output prepared/mine
  fcclip prepare world --output datasets/custom --train-images 2000 --val-images 200

exit codes: 0 all files are written; 2 stopped, with the reason; 130 interrupted.
"""
MEMORY_ADVICE = "close other programs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", choices=("coco", "ade20k", "custom", "world"), help="the dataset to prepare")
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
    parser.add_argument("--train-images", type=int, metavar="N", help="world: the scenes for training (default: 4000)")
    parser.add_argument("--val-images", type=int, metavar="N", help="world: the scenes for validation (default: 400)")
    parser.add_argument(
        "--designs",
        metavar="NAME",
        help="world: training, or kept_back, the design that configs/world.py never trains on (default: training)",
    )


def run(arguments: argparse.Namespace) -> int:
    custom = (arguments.images, arguments.json, arguments.pngs)
    world = (arguments.train_images, arguments.val_images, arguments.designs)
    if arguments.dataset == "world":
        if any(custom) or arguments.root:
            raise ValueError("the dataset world is composed, not read: it needs no --root, --images, --json or --pngs")
        if any(number is not None and number < 1 for number in world[:2]):
            raise ValueError("--train-images and --val-images must be at least 1")
    elif world != (None, None, None):
        raise ValueError(
            f"--train-images, --val-images and --designs are for the dataset world, not {arguments.dataset}"
        )
    elif arguments.dataset == "custom":
        if None in custom or arguments.root:
            raise ValueError("a custom dataset needs --images, --json and --pngs, and no --root")
    elif not arguments.root or any(custom):
        raise ValueError(f"{arguments.dataset} needs --root, and no --images, --json or --pngs")
    files.check_writable(arguments.output, f"--output {arguments.output}")

    started = time.perf_counter()
    written, images = _write_world(arguments) if arguments.dataset == "world" else _write_shards(arguments)
    seconds = time.perf_counter() - started
    print(f"{arguments.output} contains {images} images; this run wrote {written} of them in {seconds:.1f} s.")
    return command_line.DONE


def _write_shards(arguments: argparse.Namespace) -> tuple[int, int]:
    """Returns the numbers of images that this run wrote, and that there are."""
    from fcclip_jax.data.datasets import open_folder
    from fcclip_jax.data.folder import FolderDataset
    from fcclip_jax.data.shards import write_shards

    if arguments.dataset == "custom":
        datasets = {"train": FolderDataset(arguments.images, arguments.json, arguments.pngs)}
    else:
        splits = [split.strip() for split in arguments.splits.split(",")]
        datasets = {split: open_folder(f"{arguments.dataset}_panoptic", arguments.root, split) for split in splits}
    return write_shards(datasets, arguments.output), sum(map(len, datasets.values()))


def _write_world(arguments: argparse.Namespace) -> tuple[int, int]:
    """Returns the numbers of images that this run wrote, and that there are."""
    from fcclip_jax.world.folder import write_folder
    from fcclip_jax.world.panoptic import WorldDataset

    sizes = {"train": arguments.train_images or 4000, "val": arguments.val_images or 400}
    designs = arguments.designs or "training"
    datasets = {split: WorldDataset(split, size, seen_only=False, designs=designs) for split, size in sizes.items()}
    return write_folder(datasets, arguments.output), sum(sizes.values())
