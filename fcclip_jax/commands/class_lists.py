"""Reads the classes that --classes and --stuff describe."""

import difflib
import pathlib

from fcclip_jax.text import vocabulary
from fcclip_jax.text.vocabulary import Vocabulary, split_words


def read_classes(classes: str, stuff: str = "") -> Vocabulary:
    """Returns the vocabulary that --classes and --stuff describe.

    Raises:
        ValueError: no class is given, no vocabulary or file has that name, or a stuff word is not among the classes.
        OSError: the file cannot be read.
    """
    text = classes.strip()
    stuff_words = split_words(stuff)
    if text in vocabulary.shipped():
        if stuff_words:
            raise ValueError(
                f"--stuff applies to your own words only; the vocabulary {text} defines its own stuff: remove --stuff"
            )
        return Vocabulary.load(text)
    if text.endswith(".txt"):
        words = _read_lines(pathlib.Path(text))
    elif _means_a_vocabulary(text):
        try:
            return Vocabulary.load(text)
        except ValueError as error:
            raise ValueError(f"{error}; for a class of that name, add a comma: '{text},'") from None
    else:
        words = split_words(text)
    if not words:
        raise ValueError(f"--classes {classes!r} names no classes; give some, such as 'cat, remote control'")
    return Vocabulary.from_words(words, stuff_words)


def _read_lines(path: pathlib.Path) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"--classes names the file {path}, which does not exist") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from None
    return [line for line in lines if line.strip()]


def _means_a_vocabulary(text: str) -> bool:
    """Returns whether one bare word resembles a shipped vocabulary's name more than a thing's name."""
    if not text or set(text) & set(" ,|"):
        return False
    families = {name.split("_")[0] for name in vocabulary.shipped()}
    return "_" in text or text in families or bool(difflib.get_close_matches(text, vocabulary.shipped(), cutoff=0.9))
