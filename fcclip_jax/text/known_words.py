"""The words that a model knows, where it was trained on few: others would only get meaningless embeddings."""

import difflib
import re
from collections.abc import Collection, Sequence

from fcclip_jax.text.vocabulary import Vocabulary

LONGEST = 4
"""A known word that is looked for inside a name has at most so many parts, such as "traffic light"."""


def check_known(vocabulary: Vocabulary, known_words: Sequence[str] | None, *, listed: str) -> None:
    """Checks that a model knows every synonym of a vocabulary. Case and white space do not matter, as for CLIP.

    known_words: None if the model takes any words.
    listed: where the user finds all known words, for the error.

    Raises:
        ValueError: a word is not known.
    """
    if known_words is None:
        return
    known = {_normal(word): word for word in known_words}
    for name in (name for entry in vocabulary.classes for name in entry.names):
        if _normal(name) not in known:
            close = [known[match] for match in difflib.get_close_matches(_normal(name), known, n=3)]
            nearest = f"nearest: {', '.join(close)}; " if close else ""
            if len(parts := parts_of(name, known)) > 1:
                nearest = f"separate classes by commas: {', '.join(known[part] for part in parts)}; "
            raise ValueError(
                f"this model knows {len(known)} words; {name!r} is not one of them; {nearest}{listed} lists them all"
            )


def parts_of(name: str, known: Collection[str]) -> list[str]:
    """Splits a name into the fewest known words that it is made of, with "and" or marks between them.

    known: in lower case, with single spaces.

    Returns an empty list for a name that is known itself, or that has any other word.
    """
    if _normal(name) in known:
        return []
    words = [word for word in re.split(r"[^\w'-]+", name.lower()) if word and word != "and"]
    # fewest[n] is the shortest list of known words that the first n words make.
    fewest: list[list[str] | None] = [[]]
    for end in range(1, len(words) + 1):
        options = [
            [*before, " ".join(words[start:end])]
            for start in range(max(0, end - LONGEST), end)
            if (before := fewest[start]) is not None and " ".join(words[start:end]) in known
        ]
        fewest.append(min(options, key=len, default=None))
    return fewest[-1] or []


def _normal(word: str) -> str:
    return " ".join(word.lower().split())
