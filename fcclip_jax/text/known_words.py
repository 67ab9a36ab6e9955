"""The words that a model knows, where it was trained on few: others would only get meaningless embeddings."""

import difflib
from collections.abc import Sequence

from fcclip_jax.text.vocabulary import Vocabulary


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
            raise ValueError(
                f"this model knows {len(known)} words; {name!r} is not one of them; {nearest}{listed} lists them all"
            )


def _normal(word: str) -> str:
    return " ".join(word.lower().split())
