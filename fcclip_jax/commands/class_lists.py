"""The classes of `fcclip segment`: those of --classes and --stuff, or the words that the checkpoint was trained on."""

from fcclip_jax import command_line
from fcclip_jax.conventions import RANDOM_WEIGHTS
from fcclip_jax.text import class_lists
from fcclip_jax.text.vocabulary import Vocabulary


def read_classes(classes: str | None, stuff: str = "", *, weights: str = "") -> Vocabulary | None:
    """Returns the vocabulary of --classes and --stuff, None if the checkpoint's own words are to be used.

    Raises:
        ValueError, OSError: as `text.class_lists.read_classes`; or there is no --classes, and --stuff is given or the
            weights are random.
    """
    if classes is not None:
        return class_lists.read_classes(classes, stuff)
    if weights.strip() == RANDOM_WEIGHTS:
        raise ValueError("random weights were trained on no words; name the classes, as in --classes 'cat, dog'")
    if stuff.strip():
        raise ValueError("--stuff applies to your own words only; give these with --classes, or remove --stuff")
    return None


def announce(words: Vocabulary | None, training_words: Vocabulary) -> Vocabulary:
    """Prints the classes to find, and returns them; if the user named none, those of the checkpoint's training.

    Raises:
        ValueError: the checkpoint was trained on no words.
    """
    found = training_words if words is None else words
    if not found.classes:
        raise ValueError("this checkpoint was trained on no words; name the classes, as in --classes 'cat, dog'")
    source = " (the checkpoint's training words, as there is no --classes)" if words is None else ""
    command_line.say(f"{found.summary()}{source}")
    return found
