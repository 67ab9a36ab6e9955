"""`fcclip vocabularies`: lists the vocabularies that ship with the package, or the classes of one."""

import argparse

from fcclip_jax import command_line
from fcclip_jax.text import vocabulary
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.world import words

HELP = "list the vocabularies that --classes accepts by name"
DESCRIPTION = """\
Lists the vocabularies that ship with the package, with their numbers of classes and of things. With a
name, lists the classes of that vocabulary: its synonyms, and whether it is a thing or stuff. For the
vocabulary world it marks the words that no mask in training shows as unseen."""
EPILOG = """\
examples:
  fcclip vocabularies
  fcclip vocabularies world
"""
MEMORY_ADVICE = "close other programs"

WIDEST = 60
"""Columns; longer lists of synonyms stand out of their column."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="the vocabulary whose classes are listed")


def run(arguments: argparse.Namespace) -> int:
    if arguments.name is None:
        for name in vocabulary.shipped():
            classes = Vocabulary.load(name).classes
            things = sum(entry.is_thing for entry in classes)
            print(f"{name:22} {len(classes):5} classes, {things:5} of them things")
        return command_line.DONE
    found = Vocabulary.load(arguments.name)
    width = min(max(len(", ".join(entry.names)) for entry in found.classes), WIDEST)
    for entry in found.classes:
        line = f"{', '.join(entry.names):{width}}  {'thing' if entry.is_thing else 'stuff'}"
        print(f"{line}  unseen" if found.name == "world" and entry.name not in words.SEEN else line)
    return command_line.DONE
