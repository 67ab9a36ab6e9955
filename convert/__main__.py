"""Converts weights to this project's checkpoints, and back.

python -m convert openclip --model convnext_large_d_320 --pretrained laion2b_s29b_b131k_ft_soup --output DIR
python -m convert fcclip --checkpoint fcclip_cocopan.pth --model convnext_large_d_320 --output DIR
python -m convert torch --checkpoint DIR --output fcclip.safetensors
python -m convert half --checkpoint DIR --output DIR
python -m convert run --run runs/coco --step best --output DIR

In an installed package the command is fcclip-convert.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from fcclip_jax import command_line

from . import PROG, commands
from .rules import ConversionError

MEMORY_ADVICE = "close other programs, or convert on a machine with more memory"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code, as `command_line.run` does."""
    arguments = _parser().parse_args(argv)

    def command() -> int:
        arguments.run(arguments)
        return command_line.DONE

    return command_line.run(command, memory_advice=MEMORY_ADVICE, describe=_describe)


def _describe(error: Exception) -> str:
    # The only error whose message has one line for each problem.
    return str(error) if isinstance(error, ConversionError) else command_line.one_line(error)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.ArgumentParser(
        prog=PROG, description="Converts weights to this project's checkpoints, and back."
    )
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="{openclip,fcclip,torch,half,run}")

    command = subparsers.add_parser("openclip", help="convert a CLIP of OpenCLIP's")
    command.add_argument(
        "--pretrained", required=True, metavar="TAG_OR_FILE", help="OpenCLIP's tag, or a .pth or .safetensors file"
    )
    _add_model(command)
    _add_source(command)
    _add_output(command)
    command.set_defaults(run=commands.from_openclip)

    command = subparsers.add_parser("fcclip", help="convert an official FC-CLIP checkpoint")
    command.add_argument("--checkpoint", required=True, type=pathlib.Path, metavar="FILE", help=".pth or .safetensors")
    command.add_argument(
        "--clip",
        metavar="TAG_OR_PATH",
        help="CLIP's weights, if the checkpoint has none: OpenCLIP's tag, a file, or the openclip command's output",
    )
    command.add_argument(
        "--vocabulary",
        default="coco_panoptic",
        metavar="NAME_OR_JSON",
        help="the checkpoint's training vocabulary: a name from `fcclip vocabularies`, or a json file in their format"
        " (default: %(default)s)",
    )
    command.add_argument(
        "--as-official",
        action="store_true",
        help="for OVRCOAT: compute all results as its authors do; by default its rescaling of void is for panoptic results"
        " alone, because it lowers mIoU and AP",
    )
    _add_model(command)
    _add_source(command)
    _add_output(command)
    command.set_defaults(run=commands.from_fcclip)

    command = subparsers.add_parser("torch", help="convert a checkpoint back to the official keys")
    command.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a checkpoint of this project, local or gs://, or a name from `fcclip weights`",
    )
    command.add_argument(
        "--output",
        required=True,
        type=pathlib.Path,
        metavar="FILE",
        help="the file to write, .safetensors, or .pth (needs PyTorch)",
    )
    _add_overwrite(command)
    command.set_defaults(run=commands.to_torch)

    command = subparsers.add_parser("half", help="store a checkpoint as float16, in half the space")
    command.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a checkpoint of this project, local or gs://, or a name from `fcclip weights`",
    )
    _add_output(command)
    command.set_defaults(run=commands.halve)

    command = subparsers.add_parser("run", help="make a checkpoint of a training run, at one of its steps")
    command.add_argument("--run", required=True, metavar="WORKDIR", dest="workdir", help="the run's --workdir")
    command.add_argument(
        "--step", default="latest", type=_step, metavar="STEP", help="a number, latest or best (default: %(default)s)"
    )
    _add_output(command)
    command.set_defaults(run=commands.from_run)
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        required=True,
        metavar="NAME_OR_JSON",
        help="OpenCLIP's name of the CLIP model, or a json file with a description",
    )
    command.add_argument(
        "--quick-gelu",
        action=argparse.BooleanOptionalAction,
        help="whether CLIP was trained with QuickGELU (default: taken from its name, tag or description)",
    )


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--source",
        metavar="TEXT",
        help="what the checkpoint records as the origin of its weights (default: the tag, or the file's name)",
    )


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", required=True, metavar="DIR", help="the checkpoint to write, local or gs://")
    _add_overwrite(command)


def _add_overwrite(command: argparse.ArgumentParser) -> None:
    command.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _step(text: str) -> int | str:
    if text in ("latest", "best"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a step; give a number, latest or best") from None


if __name__ == "__main__":
    sys.exit(main())
