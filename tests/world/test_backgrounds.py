"""Textures: determinism, crops, and that words can be told apart."""

import itertools

import cv2
import numpy as np
import pytest

from fcclip_jax.world import words
from fcclip_jax.world.backgrounds import PAINTERS, SIDE, Backgrounds, texture


def test_every_stuff_word_has_a_painter():
    assert set(PAINTERS) == set(words.STUFF)


def test_a_crop_is_a_part_of_a_texture_and_sometimes_mirrored():
    bank = Backgrounds(3)
    parts = [bank.crop(np.random.default_rng(seed), "sand", (40, 70)) for seed in range(12)]
    mirrored = []
    for seed, part in enumerate(parts):
        assert part.shape == (40, 70, 3)
        # The first draw chooses the texture, the next two the corner.
        rng = np.random.default_rng(seed)
        whole = texture("sand", np.random.default_rng([3, list(PAINTERS).index("sand"), int(rng.integers(12))]))
        top, left = rng.integers(SIDE - 40 + 1), rng.integers(SIDE - 70 + 1)
        expected = whole[top : top + 40, left : left + 70]
        mirrored.append(np.array_equal(part, expected[:, ::-1]))
        assert mirrored[-1] or np.array_equal(part, expected)
    assert any(mirrored) and not all(mirrored)


def test_the_seed_decides():
    def part(seed: int) -> np.ndarray:
        return Backgrounds(seed).crop(np.random.default_rng(0), "grass", (64, 64))

    assert np.array_equal(part(1), part(1))
    assert not np.array_equal(part(1), part(2))


def test_crops_that_are_too_large():
    with pytest.raises(ValueError, match="a crop of 64x400 exceeds the 384x384 textures"):
        Backgrounds(0).crop(np.random.default_rng(0), "sky", (64, 400))


def test_words_are_told_apart_in_any_crop_without_its_brightness():
    """The nearest mean of a few statistics of grey crops, of mean 0 and deviation 1, finds the word of other textures.

    Guessing finds an eighth. A classifier with colours, or a network, sees far more than these numbers.
    """

    def features(part: np.ndarray) -> np.ndarray:
        grey = cv2.cvtColor(np.ascontiguousarray(part), cv2.COLOR_RGB2GRAY).astype(np.float64)
        grey = (grey - grey.mean()) / (grey.std() + 1e-6)
        bands = [grey]
        for _ in range(4):
            bands.append(cv2.GaussianBlur(bands[-1], (0, 0), 2))
        energies = [np.log(np.mean((fine - coarse) ** 2) + 1e-6) for fine, coarse in itertools.pairwise(bands)]
        return np.array([*energies, np.mean(grey**3), np.log(np.mean(grey**4))])

    train, test = Backgrounds(0), Backgrounds(1)
    rng = np.random.default_rng(0)
    known = {word: np.stack([features(train.crop(rng, word, (64, 64))) for _ in range(40)]) for word in words.STUFF}
    scale = np.concatenate(list(known.values())).std(axis=0)
    means = {word: rows.mean(axis=0) for word, rows in known.items()}
    right = [
        min(means, key=lambda name: np.sum(((means[name] - found) / scale) ** 2)) == word
        for word in words.STUFF
        for found in (features(test.crop(rng, word, (64, 64))) for _ in range(20))
    ]
    assert np.mean(right) > 0.6
