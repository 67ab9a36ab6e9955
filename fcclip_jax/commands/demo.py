"""`fcclip demo`: a page in the browser that segments photographs."""

import argparse
import json
import os
import pathlib
import signal
import warnings
from typing import TYPE_CHECKING

from fcclip_jax import command_line, devices
from fcclip_jax.conventions import PRECISIONS, RANDOM_WEIGHTS, WORLD_WEIGHTS
from fcclip_jax.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from fcclip_jax.demo.page import About

HELP = "segment photographs on a page in the browser"
DESCRIPTION = """\
Opens a page that segments photographs: upload one, name words, and point at a segment to see what it is.
The page serves visitors one after the other, with one compiled program. What they send is not kept."""
EPILOG = """\
examples:
  fcclip demo
  fcclip demo --weights fcclip_convnext_large --port 8080

exit codes: 2 stopped, with the reason; 130 interrupted (Ctrl-C).
"""
MEMORY_ADVICE = "try a smaller --short-side"

WORDS = "person, cat, dog, car, bicycle, chair, table, tree, sky, grass, road, building, wall, floor"
STUFF = "tree, sky, grass, road, building, wall, floor"
"""What the page starts with, unless the model knows few words: then with the first of its training's."""
FEW = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        default=WORLD_WEIGHTS,
        metavar="DIR_OR_NAME",
        help="as for fcclip segment: a checkpoint directory, a name that `fcclip weights` lists, or"
        f" {RANDOM_WEIGHTS!r} (default: {WORLD_WEIGHTS!r}, the small trained model inside this package)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen at (default: %(default)s, this machine only; 0.0.0.0 is every network of this machine)",
    )
    parser.add_argument("--port", type=_port, default=7860, help="the port to listen at (default: %(default)s)")
    parser.add_argument(
        "--share", action="store_true", help="also open a public address through Gradio's servers, for a week at most"
    )
    parser.add_argument("--precision", choices=PRECISIONS, help="as for fcclip segment")
    parser.add_argument("--short-side", type=command_line.count, metavar="PIXELS", help="as for fcclip segment")


def run(arguments: argparse.Namespace) -> int:
    if not command_line.is_installed("gradio"):
        raise command_line.missing_package("gradio", "the page")

    from fcclip_jax.demo import serving

    serving.check_port(arguments.host, arguments.port)

    from fcclip_jax.demo.answers import Answerer
    from fcclip_jax.inference.segmenter import Segmenter

    # The answer says it to the visitor; a warning would put the visitor's words into the server's log.
    warnings.filterwarnings("ignore", message="no font of this system")
    # A server is stopped by this signal; like Ctrl-C, it then deletes the folder of uploads.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    segmenter = Segmenter.load(
        arguments.weights, short_side=arguments.short_side, precision=arguments.precision, keep_words=False
    )
    answerer = Answerer(segmenter)
    with serving.uploads():
        from fcclip_jax.demo import page

        text = about(arguments.weights)
        if segmenter.known_words is not None and not text.examples:
            words, stuff = first_words(segmenter.training_vocabulary)
            text = text._replace(words=words, stuff=stuff)
        devices.warn_of_unused_gpu()
        print(f"compiling the program for {devices.describe()} and embedding the first words", flush=True)
        answerer.warm_up(text.words, text.stuff)
        serving.serve(
            lambda: page.build(answerer, text), host=arguments.host, port=arguments.port, share=arguments.share
        )
    return command_line.DONE


def about(weights: str) -> "About":
    """Returns what the page says of these weights."""
    from fcclip_jax.demo.page import About, Example
    from fcclip_jax.weights import table
    from fcclip_jax.world.words import STUFF as WORLD_STUFF

    title = "Open-vocabulary segmentation"
    if weights == RANDOM_WEIGHTS:
        return About(title, "Model: random weights; the results are meaningless.", WORDS, STUFF, ())
    if os.path.exists(weights) or weights not in table.entries():
        text = f"Model: `{pathlib.PurePath(weights).name}`. Its licence is its publisher's."
        return About(title, text, WORDS, STUFF, ())
    entry = table.entry(weights)
    text = f"Model: `{entry.name}`, {entry.title}. Licence: {entry.licence}. {table.method_note()}"
    if weights != WORLD_WEIGHTS:
        return About(title, text, WORDS, STUFF, ())
    folder = pathlib.Path(__file__).parents[1] / "world" / "pictures"
    examples = []
    for picture in json.loads((folder / "pictures.json").read_text("utf-8")):
        stuff = ", ".join(word for word in picture["words"] if word in WORLD_STUFF)
        examples.append(Example(folder / picture["file"], ", ".join(picture["words"]), stuff))
    text += (
        " It is a miniature that knows emoji on painted backgrounds, and no model for photographs: try the examples. They show"
        " emoji of published sets; fcclip_jax/world/sprites/LICENSES.md in the package names their authors and licences."
    )
    return About(title, text, examples[0].words, examples[0].stuff, tuple(examples))


def first_words(vocabulary: Vocabulary) -> tuple[str, str]:
    """Returns a few of a vocabulary's words for the page's boxes, and those of them that are stuff."""
    classes = vocabulary.classes[:FEW]
    return ", ".join(entry.name for entry in classes), ", ".join(entry.name for entry in classes if not entry.is_thing)


def _port(text: str) -> int:
    port = command_line.count(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, which is at most 65535")
    return port
