"""The words of the miniature world: things, which are emoji, and stuff, which is background.

words.json lists them, with the code point of each emoji. Seen words have masks in training. Unseen words appear in
captions only; their nouns are not part of any seen word, so nothing but the captions teaches them.
"""

import json
from importlib import resources

from fcclip_jax.text.vocabulary import Vocabulary, VocabularyClass, color_of

_RECORD = json.loads((resources.files(__package__) / "words.json").read_text("utf-8"))

THINGS: tuple[str, ...] = tuple(thing["name"] for thing in _RECORD["things"])
STUFF: tuple[str, ...] = tuple(stuff["name"] for stuff in _RECORD["stuff"])
WORDS: tuple[str, ...] = THINGS + STUFF
SEEN: frozenset[str] = frozenset(word["name"] for word in _RECORD["things"] + _RECORD["stuff"] if word["seen"])
CODE_POINTS: dict[str, str] = {thing["name"]: thing["codepoint"] for thing in _RECORD["things"]}
"""The emoji of each thing: Unicode code points in lower-case hexadecimal, joined by "-", without U+FE0F."""


def vocabulary(seen_only: bool) -> Vocabulary:
    """Returns all words, or the seen ones, as classes with the ids 1 to N in the order of WORDS."""
    words = [word for word in WORDS if not seen_only or word in SEEN]
    name = "world_seen" if seen_only else "world"
    things = frozenset(THINGS)
    return Vocabulary(
        name,
        tuple(VocabularyClass((word,), word in things, color_of(word), id) for id, word in enumerate(words, start=1)),
    )
