"""Captioned pictures of the world: captions are true, and the world's text tower has all of their tokens."""

import numpy as np
import pytest

from fcclip_jax.text.prompts import PROMPT_TEMPLATES
from fcclip_jax.text.tokenizer import table_rows, tokenize
from fcclip_jax.world import windows, words
from fcclip_jax.world.clip import CONTEXT_LENGTH, token_ids
from fcclip_jax.world.windows import Windows


@pytest.fixture(scope="module")
def source() -> Windows:
    return Windows(("twemoji",), 3)


@pytest.mark.parametrize("side", [64, 128])
def test_captions_are_true_and_complete(source, side):
    whole = stuff_first = 0
    kinds = set()
    for seed in range(150):
        example = source.example(0, np.random.default_rng([side, seed]), side)
        assert example.image.shape == (side, side, 3)
        things = {name for name in example.names if name in words.THINGS}
        stuff = [name for name in example.names if name in words.STUFF]
        assert len(things) + len(stuff) == len(set(example.names)) and stuff
        kinds.add((len(things), len(stuff)))
        for caption in example.captions:
            assert set(caption.names) <= set(example.names)
            if len(caption.names) == 1:
                assert caption.text in {template.format(caption.names[0]) for template in PROMPT_TEMPLATES}
            else:
                assert set(caption.names) == set(example.names)
                assert all(name in caption.text for name in caption.names)
        first = example.captions[0].names
        whole += len(first) > 1
        stuff_first += first[0] in words.STUFF
        # Every thing has a caption of its own.
        assert {caption.names[0] for caption in example.captions if len(caption.names) == 1} >= things
    if side == 64:
        assert kinds == {(1, 1)} and whole == 0
    else:
        assert {things for things, _ in kinds} >= {1, 2, 3} and {count for _, count in kinds} == {1, 2}
        assert whole > 0
    assert 0 < stuff_first < 75


def test_the_generator_decides(source):
    first, same, other = (
        source.example(index, np.random.default_rng(seed), 64) for index, seed in ((0, 1), (5, 1), (0, 2))
    )
    assert np.array_equal(first.image, same.image) and first[1:] == same[1:]
    assert not np.array_equal(first.image, other.image)


def test_every_caption_fits_the_text_tower():
    def tokens_of(word: str) -> int:
        return int(np.argmax(tokenize([f"a {word}"])[0]))

    class Every(np.random.Generator):
        """A generator whose next integer is the one given."""

        def __init__(self, value: int):
            super().__init__(np.random.PCG64(0))
            self._value = value

        def integers(self, *_):
            return self._value

    things = sorted(words.THINGS, key=tokens_of)
    stuff = sorted(words.STUFF, key=tokens_of)
    texts = []
    for template in range(len(PROMPT_TEMPLATES)):
        rng = Every(template)
        texts += [windows._name_one(word, rng).text for word in words.WORDS]
        # Every thing first, in the middle and last; every background first and last.
        for i in range(len(things)):
            three = [things[i], things[i - 1], things[i - 2]]
            two = [stuff[i % len(stuff)], stuff[(i + 1) % len(stuff)]]
            texts += [windows._name_all(three, two, rng), windows._name_all(three[:2], two[:1], rng)]
        texts.append(windows._name_all(things[-3:], stuff[-2:], rng))
    texts = sorted(set(texts))
    tokens = tokenize(texts)
    table_rows(tokens, token_ids(), texts)  # it raises for a token that the table lacks
    longest = int(np.argmax(tokens, axis=1).max()) + 1
    assert longest == 29 <= CONTEXT_LENGTH
