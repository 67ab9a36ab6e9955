"""Vocabularies: the classes to find, each with its synonyms, thing or stuff, a colour and an id.

Users write classes in two forms, with one mark for synonyms:

    text   cat|kitten, remote control, sofa       | between the synonyms of a class; a comma, a semicolon or a line break
                                                  between classes
    list   ["cat|kitten", "remote control"]       an item is a class; | or a comma between its synonyms

Text is what --classes, --stuff, `custom.words` of the evaluation and the demo page's boxes take, and what a .txt file holds.
Lists are those of Python and of .json and .yaml files, and the names of categories in COCO's format. A comma separates
synonyms there because the official prompt files write them so ("person,child,girl"), and the items separate the classes
already. The first synonym is the class's name. `split_words` and `split_synonyms` split at these marks;
`text.class_lists` reads files and warns of what probably means something else.
"""

import colorsys
import dataclasses
import difflib
import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib import resources

from fcclip_jax.text.prompts import PROMPT_TEMPLATES

SUMMARY_CLASSES, SUMMARY_SYNONYMS = 12, 3
"""A summary of a vocabulary names at most so many classes, and so many synonyms of each."""


@dataclasses.dataclass(frozen=True)
class VocabularyClass:
    """One class. `id` is its number in the dataset's annotations; `color` is RGB, 0 to 255."""

    names: tuple[str, ...]
    is_thing: bool
    color: tuple[int, int, int]
    id: int

    @property
    def name(self) -> str:
        return self.names[0]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Classes, in the order of the model's logits.

    `ignore_label` marks unlabelled pixels in the annotations, None if no label does.
    """

    name: str
    classes: tuple[VocabularyClass, ...]
    ignore_label: int | None = None

    @classmethod
    def load(cls, name: str) -> "Vocabulary":
        """Loads a vocabulary that ships with the package.

        Raises:
            ValueError: the name is not in `shipped()`.
        """
        if name not in shipped():
            close = difflib.get_close_matches(str(name), shipped(), n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(
                f"no vocabulary is called {name!r}: {hint}choose from {', '.join(shipped())}; or give your own words"
                " as a list"
            )
        return cls.from_json((_FOLDER / f"{name}.json").read_text("utf-8"))

    @classmethod
    def from_words(cls, words: Sequence[str], stuff: Sequence[str] = ()) -> "Vocabulary":
        """Makes a vocabulary of your own words: `from_words(["cat|kitten", "sky", "grass"], stuff=["sky", "grass"])`.

        Each item is one class; | or commas separate its synonyms, and the first synonym is its name. Classes are things,
        counted one by one, unless `stuff` names them.

        Raises:
            ValueError: the list is empty, an item is empty or has a semicolon, two classes have the same name (CLIP
                ignores case), or `stuff` names no class.
        """
        for what, given in (("the classes", words), ("stuff", stuff)):
            if not isinstance(given, (list, tuple)) or not all(isinstance(word, str) for word in given):
                raise ValueError(f"{what} must be a list of words, such as ['cat, kitten', 'sofa']; got {given!r:.80}")
        if not words:
            raise ValueError("the list of classes is empty; name at least one")
        if joined := [word for word in words if any(mark in word for mark in SEMICOLONS)]:
            raise ValueError(
                f"the class name {joined[0]!r} has a semicolon, which separates classes; make each class an item of the list"
            )
        synonyms = [split_synonyms(word) for word in words]
        counts = Counter(" ".join(names[0].lower().split()) for names in synonyms)
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"the class {repeated[0]!r} is named {counts[repeated[0]]} times; name each class once")
        stuff_names = {split_synonyms(word)[0] for word in stuff}
        if unknown := sorted(stuff_names - {names[0] for names in synonyms}):
            raise ValueError(f"stuff {unknown[0]!r} is not among the classes; name a class by its first synonym")
        classes = (
            VocabularyClass(names, names[0] not in stuff_names, color_of(names[0]), id)
            for id, names in enumerate(synonyms, start=1)
        )
        return cls("custom", tuple(classes))

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class, its first synonym."""
        return tuple(entry.name for entry in self.classes)

    @property
    def groups(self) -> tuple[int, ...]:
        """Class index of each synonym, in the order of `prompts`."""
        return tuple(index for index, entry in enumerate(self.classes) for _ in entry.names)

    @property
    def thing_mask(self) -> tuple[bool, ...]:
        return tuple(entry.is_thing for entry in self.classes)

    def prompts(self) -> list[str]:
        """Returns each synonym in each template, the templates innermost."""
        names = (name for entry in self.classes for name in entry.names)
        return [template.format(name) for name in names for template in PROMPT_TEMPLATES]

    @property
    def prompts_sha256(self) -> str:
        return hashlib.sha256("\n".join(self.prompts()).encode("utf-8", "surrogatepass")).hexdigest()

    def seen_by(self, training_vocabulary: "Vocabulary") -> tuple[bool, ...]:
        """Returns whether each class has a synonym that is, letter for letter, a synonym in the training vocabulary."""
        trained = {name for entry in training_vocabulary.classes for name in entry.names}
        return tuple(not trained.isdisjoint(entry.names) for entry in self.classes)

    def summary(self) -> str:
        """Returns the classes in a line, such as "3 classes: cat (kitten), dog, sofa (stuff)"; many are abridged."""
        parts = []
        for entry in self.classes[:SUMMARY_CLASSES]:
            others = entry.names[1 : 1 + SUMMARY_SYNONYMS]
            notes = [", ".join(others) + ", ..." * (len(entry.names) > 1 + SUMMARY_SYNONYMS)] if others else []
            notes += [] if entry.is_thing else ["stuff"]
            parts.append(f"{entry.name} ({'; '.join(notes)})" if notes else entry.name)
        if len(self.classes) > SUMMARY_CLASSES:
            parts.append(f"and {len(self.classes) - SUMMARY_CLASSES} more")
        return f"{len(self.classes)} class{'es' * (len(self.classes) != 1)}: {', '.join(parts)}"

    def to_json(self) -> str:
        """Writes one class a line, and a checksum of the prompts, which shows whether names were changed."""
        head = {"name": self.name, "ignore_label": self.ignore_label, "prompts_sha256": self.prompts_sha256}
        classes = (
            {"id": entry.id, "names": entry.names, "thing": entry.is_thing, "color": entry.color}
            for entry in self.classes
        )
        lines = ",\n  ".join(map(json.dumps, classes))
        return f'{json.dumps(head)[:-1]}, "classes": [\n  {lines}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Reads the text that `to_json` writes, without trusting it.

        Raises:
            ValueError: the text is not a vocabulary; the message names the first fault.
        """
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the vocabulary is not JSON ({error}); write it with Vocabulary.to_json") from None
        match record:
            case {
                "name": str(name),
                "ignore_label": None | int() as ignore_label,
                "classes": [_, *_] as classes,
            } if not isinstance(ignore_label, bool):
                vocabulary = cls(name, tuple(map(_parse_class, classes)), ignore_label)
            case _:
                raise ValueError(
                    'the vocabulary needs a "name", an "ignore_label" (a number or null), and a list of "classes"; one'
                    " is missing or malformed"
                )
        id, count = Counter(entry.id for entry in vocabulary.classes).most_common(1)[0]
        if count > 1:
            raise ValueError(f"the vocabulary {name!r} gives the id {id} to {count} classes; ids must differ")
        if record.get("prompts_sha256", vocabulary.prompts_sha256) != vocabulary.prompts_sha256:
            raise ValueError(
                f"the names in the vocabulary {name!r} do not match its prompts_sha256; restore the file, or remove"
                " prompts_sha256 if the names were changed on purpose"
            )
        spaced = (dataclasses.replace(entry, names=tuple(map(_spaced, entry.names))) for entry in vocabulary.classes)
        return dataclasses.replace(vocabulary, classes=tuple(spaced))


def split_words(text: str) -> list[str]:
    """Splits text at commas, semicolons and line breaks, into items for `Vocabulary.from_words`; empty ones are dropped."""
    return [word.strip() for word in _BETWEEN_CLASSES.split(text) if _BETWEEN_SYNONYMS.sub("", word).strip()]


def split_synonyms(item: str) -> tuple[str, ...]:
    """Splits an item of a list at | and commas; empty parts are dropped.

    Raises:
        ValueError: nothing is left.
    """
    names = tuple(spaced for name in _BETWEEN_SYNONYMS.split(item) if (spaced := _spaced(name)))
    if not names:
        raise ValueError(f"the class name {item!r} is empty; write a word, or several synonyms with | between them")
    return names


@functools.cache
def shipped() -> tuple[str, ...]:
    """Returns the names that `Vocabulary.load` accepts."""
    return tuple(sorted(file.name.removesuffix(".json") for file in _FOLDER.iterdir()))


def color_of(name: str) -> tuple[int, int, int]:
    """Returns a name's colour, RGB: the same in all vocabularies and runs, neither dark nor pale."""
    hue, saturation, value = (byte / 255 for byte in hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:3])
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.5 + 0.5 * saturation, 0.6 + 0.4 * value)
    return round(255 * red), round(255 * green), round(255 * blue)


_FOLDER = resources.files(__package__) / "vocabularies"

# With the marks that keyboards of Chinese, Japanese and Arabic type for these.
COMMAS = ",\uff0c\u3001\u060c"
SEMICOLONS = ";\uff1b\u061b"
_BETWEEN_SYNONYMS = re.compile(f"[|\uff5c{COMMAS}]")
_BETWEEN_CLASSES = re.compile(f"[{SEMICOLONS}{COMMAS}]|\n|\r|\x0b|\x0c|\x85|\u2028|\u2029")


def _spaced(name: str) -> str:
    """Returns a name with single spaces for all white space, as the tokenizer reads it; line breaks cannot be drawn."""
    return " ".join(name.split())


def _parse_class(record: object) -> VocabularyClass:
    match record:
        case {
            "id": int(id),
            "names": [str(), *_] as names,
            "thing": bool(thing),
            "color": [int(), int(), int()] as rgb,
        }:
            named = all(isinstance(name, str) and name.strip() for name in names)
            if named and all(type(value) is int and 0 <= value <= 255 for value in rgb) and type(id) is int and id >= 0:
                return VocabularyClass(tuple(names), thing, tuple(rgb), id)
    example = '{"id": 1, "names": ["cat"], "thing": true, "color": [255, 0, 0]}'
    raise ValueError(f"the class {record!r:.80} in the vocabulary is not of the form {example}")
