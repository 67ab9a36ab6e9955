"""The command line fcclip: segments photographs, fetches weights, and prepares data for training and evaluation."""

import argparse
import sys
from collections.abc import Sequence

import fcclip_jax
from fcclip_jax import command_line
from fcclip_jax.commands import annotate, demo, prepare, segment, vocabularies, weights

COMMANDS = {
    "segment": segment,
    "demo": demo,
    "weights": weights,
    "vocabularies": vocabularies,
    "prepare": prepare,
    "annotate": annotate,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; see command_line.run."""
    arguments = build_parser().parse_args(argv)
    command = COMMANDS[arguments.command]
    return command_line.run(lambda: command.run(arguments), memory_advice=command.MEMORY_ADVICE)


def build_parser() -> argparse.ArgumentParser:
    parser = command_line.ArgumentParser(
        prog="fcclip", description="Open-vocabulary segmentation with a single frozen convolutional CLIP."
    )
    parser.add_argument("--version", action="version", version=f"fcclip_jax {fcclip_jax.__version__}")
    subparsers = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar=f"{{{','.join(COMMANDS)}}}"
    )
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=command.HELP,
            description=command.DESCRIPTION,
            epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
