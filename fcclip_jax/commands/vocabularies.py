"""`fcclip vocabularies`: lists the vocabularies that ship with the package."""

import argparse

from fcclip_jax import command_line
from fcclip_jax.text import vocabulary
from fcclip_jax.text.vocabulary import Vocabulary

HELP = "list the vocabularies that --classes accepts by name"
DESCRIPTION = "Lists the vocabularies that ship with the package, with their numbers of classes and of things."
EPILOG = None
MEMORY_ADVICE = "close other programs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the command has no arguments."""


def run(arguments: argparse.Namespace) -> int:
    for name in vocabulary.shipped():
        classes = Vocabulary.load(name).classes
        things = sum(entry.is_thing for entry in classes)
        print(f"{name:22} {len(classes):5} classes, {things:5} of them things")
    return command_line.DONE
