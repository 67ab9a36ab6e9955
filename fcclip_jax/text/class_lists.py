"""Reads the classes that a user writes: words, the name of a shipped vocabulary, or a file.

`text.vocabulary` defines the grammar. Whatever probably means something else is refused, or warned of.
"""

import difflib
import functools
import json
import os
import pathlib
import re
import reprlib
import warnings
from typing import Any

import yaml

from fcclip_jax.text import vocabulary
from fcclip_jax.text.known_words import parts_of
from fcclip_jax.text.vocabulary import COMMAS, SEMICOLONS, Vocabulary, split_synonyms, split_words

FILES = (".txt", ".json", ".yaml", ".yml")
"""What the name of a file of classes ends with, in either case."""

COMMON = ("coco_panoptic", "ade20k_150", "lvis_1203")
"""The vocabularies whose names tell a list without commas from a class of several words."""

_FILE_NAME = re.compile(r"\S*\w\.[A-Za-z][A-Za-z0-9]{1,4}")
_PATH_START = re.compile(r"(~|\.{1,2})?[/\\]|[A-Za-z]:\\")


def read_classes(classes: str, stuff: str = "", *, option: str = "--classes") -> Vocabulary:
    """Returns the vocabulary that a user's texts describe.

    classes: words, a shipped vocabulary's name, or a file: .txt with words, .json or .yaml with a list of them, or .json as
        `Vocabulary.to_json` writes it.
    stuff: those of the classes that are stuff: words or a file.
    option: what the user wrote the classes in, for messages.

    Raises:
        ValueError: no class is given, no vocabulary or file has that name, or a stuff word is not among the classes.
        OSError: the file cannot be read.
    """
    found = _read(classes.strip(), option)
    stuff_words = _read(stuff.strip(), "--stuff", among_classes=True)
    if isinstance(stuff_words, Vocabulary):
        raise ValueError(f"--stuff {stuff!r} is a whole vocabulary; give words that are among the classes")
    if isinstance(found, Vocabulary):
        if stuff_words:
            raise ValueError(
                f"--stuff applies to your own words only; the vocabulary {found.name} defines its own stuff: remove --stuff"
            )
        return found
    if not found:
        raise ValueError(f"{option} {classes!r} names no classes; give some, such as 'cat, remote control'")
    made = Vocabulary.from_words(found, stuff_words)
    warn_of_lists(made)
    return made


def read_numbered_classes(classes: str, *, option: str) -> Vocabulary:
    """Returns the vocabulary of a text whose order gives the classes their labels, as `read_classes` does.

    Raises:
        ValueError, OSError: as `read_classes`; or the text has commas and semicolons, of which commas separated synonyms in
            earlier versions, or an empty class, either of which would silently renumber the others.
    """
    commas, semicolons = (any(mark in classes for mark in marks) for marks in (COMMAS, SEMICOLONS))
    if commas and semicolons:
        raise ValueError(
            f"{option} has commas and semicolons, which both separate classes; use one of them, and | between synonyms, as in"
            " 'cat|kitten; sofa'"
        )
    if any(
        not part.strip()
        for part in re.split(f"[{COMMAS}{SEMICOLONS}]", re.sub(rf"[{COMMAS}{SEMICOLONS}]\s*$", "", classes))
    ):
        raise ValueError(f"{option} is {classes!r}, but the class name '' is empty; remove the additional separator")
    return read_classes(classes, option=option)


def warn_of_lists(words: Vocabulary) -> None:
    """Warns of a class that is probably a list of classes, such as "cat dog person".

    Its parts are names in `COMMON`, but the whole is none. Two parts, such as "dog house", count only in a sole class, and so do
    synonyms: three or more, each a class of its own in one of these vocabularies.
    """
    sole = len(words.classes) == 1
    for entry in words.classes:
        alone = len(entry.names) == 1
        parts = parts_of(entry.name, _common()) if alone else _separate(entry.names) if sole else []
        if len(parts) >= (2 if sole and alone else 3):
            warnings.warn(
                f"{', '.join(entry.names)!r} is one class; if these are {len(parts)} classes, separate them:"
                f" {', '.join(parts)!r} as text, {json.dumps(parts, ensure_ascii=False)} as a list",
                stacklevel=3,
            )
            return


def _read(text: str, option: str, *, among_classes: bool = False) -> list[str] | Vocabulary:
    if text in vocabulary.shipped() and not among_classes:
        return Vocabulary.load(text)
    if text.startswith("["):
        return _items(_parsed(json.loads, text, f"{option} {text!r:.80}"), f"{option} {text!r:.80}")
    path = pathlib.Path(os.path.expanduser(text))
    if text.lower().endswith(FILES) and (len(split_words(text)) == 1 or os.path.exists(path)):
        return _read_file(path, option)
    if not among_classes and _means_a_vocabulary(text):
        try:
            return Vocabulary.load(text)
        except ValueError as error:
            raise ValueError(f"{error}; for a class of that name, add a comma: '{text},'") from None
    words = split_words(text)
    for word in words:
        _check_word(word, words, option)
    return words


def _read_file(path: pathlib.Path, option: str) -> list[str] | Vocabulary:
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{option} names the file {path}, which does not exist") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from None
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return _read_lines(text, path)
    if suffix == ".json":
        content = _parsed(json.loads, text, str(path))
        if isinstance(content, dict) and "classes" in content:
            try:
                return Vocabulary.from_json(text)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
    else:
        content = _parsed(yaml.safe_load, text, str(path))
    items = _items(content, str(path))
    if not items:
        raise ValueError(f'{path} names no classes; write some, such as ["cat|kitten", "sofa"]')
    return items


def _read_lines(text: str, path: pathlib.Path) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    # A comma in a line separated synonyms in earlier versions.
    if several := [line for line in lines if len(split_words(line)) > 1 and len(lines) > 1]:
        more = f" ({len(several) - 1} more lines have several)" if len(several) > 1 else ""
        warnings.warn(
            f"{path}: the line {several[0]!r:.80} is read as {len(split_words(several[0]))} classes{more}; separate synonyms"
            " with |, as in cat|kitten",
            stacklevel=4,
        )
    return split_words(text)


def _parsed(parse: Any, text: str, name: str) -> Any:
    try:
        return parse(text)
    # yaml.safe_load raises some of them on tags that do not fit, such as !!bool maybe.
    except (ValueError, LookupError, AttributeError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(
            f'{name} cannot be parsed ({" ".join(str(error).split())}); write a list such as ["cat|kitten", "sofa"]'
        ) from None


def _items(content: Any, name: str) -> list[str]:
    if not isinstance(content, list):
        raise ValueError(
            f'{name} holds {reprlib.repr(content)}, which is not a list of classes; write one such as ["cat|kitten", "sofa"]'
        )
    for item in content:
        if not isinstance(item, str):
            raise ValueError(
                f"{name} has the item {reprlib.repr(item)}, which is not a text; write each class in quotes"
            )
    return content


def _check_word(word: str, words: list[str], option: str) -> None:
    """Refuses a word that is a vocabulary's name among others, or that looks like a file."""
    if word in vocabulary.shipped() and "_" in word:
        raise ValueError(f"{option} names the vocabulary {word} among words; give it alone, or words alone")
    for name in split_synonyms(word):
        if not _looks_like_a_file(name):
            continue
        if not os.path.exists(os.path.expanduser(name)):
            advice = (
                "" if "/" in name or "\\" in name else f"; for a class of that name, write {name.replace('.', '. ')!r}"
            )
            raise ValueError(f"{option} has the word {name!r}, which looks like a file that does not exist{advice}")
        if len(words) > 1 and name.lower().endswith(FILES):
            raise ValueError(f"{option} names the file {name} among words; give it alone, or words alone")
        raise ValueError(f"{option} names {name}, which is no list of classes; one ends in {', '.join(FILES)}")


def _looks_like_a_file(name: str) -> bool:
    if _PATH_START.match(name) or ("/" in name and os.path.exists(name)):
        return True
    return _FILE_NAME.fullmatch(name) is not None and not parts_of(name, _common())


def _means_a_vocabulary(text: str) -> bool:
    """Returns whether one bare word resembles a shipped vocabulary's name more than a thing's name."""
    if len(text.split()) != 1 or split_words(text) != [text] or "|" in text or _FILE_NAME.fullmatch(text):
        return False
    families = {name.split("_")[0] for name in vocabulary.shipped()}
    return "_" in text or text in families or bool(difflib.get_close_matches(text, vocabulary.shipped(), cutoff=0.9))


@functools.cache
def _common_names() -> dict[str, dict[str, int]]:
    """Returns the index of the class that each name has, in lower case, in each of `COMMON`."""
    return {
        name: {word.lower(): index for index, entry in enumerate(Vocabulary.load(name).classes) for word in entry.names}
        for name in COMMON
    }


@functools.cache
def _common() -> frozenset[str]:
    return frozenset().union(*_common_names().values())


def _separate(names: tuple[str, ...]) -> list[str]:
    """Returns the synonyms of a class if they are classes of their own in one of `COMMON`, otherwise an empty list."""
    for known in _common_names().values():
        if len({known.get(name.lower(), -1) for name in names} - {-1}) == len(names):
            return list(names)
    return []
