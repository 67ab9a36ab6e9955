"""The check that a model knows the words that it is given."""

import pytest

from fcclip_jax.text.known_words import check_known
from fcclip_jax.text.vocabulary import Vocabulary

KNOWN = ("hot dog", "cat", "guitar", "guinea pig", "Night Sky")


@pytest.mark.parametrize("words", [["cat"], ["Hot  Dog, CAT", "night sky"]])
def test_case_and_white_space_do_not_matter(words):
    check_known(Vocabulary.from_words(words), KNOWN, listed="the list")


def test_any_word_without_a_list():
    check_known(Vocabulary.from_words(["anything"]), None, listed="the list")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["cat, guitars"],
            "this model knows 5 words; 'guitars' is not one of them; nearest: guitar; the list lists them",
        ),
        (["NIGHTSKY"], "'NIGHTSKY' is not one of them; nearest: Night Sky; "),
        (["cat night sky"], "'cat night sky' is not one of them; separate classes by commas: cat, Night Sky; the list"),
        (["cat", "xyz"], "'xyz' is not one of them; the list lists them all"),
    ],
)
def test_unknown_words(words, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_known(Vocabulary.from_words(words), KNOWN, listed="the list")


def test_three_are_nearest():
    known = [f"cat{n}" for n in range(9)]
    with pytest.raises(ValueError, match=r"nearest: (cat\d, ){2}cat\d; "):
        check_known(Vocabulary.from_words(["cat"]), known, listed="the list")
