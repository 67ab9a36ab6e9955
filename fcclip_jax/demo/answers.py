"""Answers visitors: from a photograph, words and settings to a result, or to one sentence."""

import math
import pathlib
import threading
import time
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fcclip_jax.conventions import STRIDE, round_up
from fcclip_jax.data import image_sources
from fcclip_jax.data.images import PILLOW_ERRORS, reason, upright_rgb
from fcclip_jax.inference import fonts
from fcclip_jax.inference.buckets import CANVAS_SIDES
from fcclip_jax.inference.feeding import Feeder
from fcclip_jax.inference.results import Result
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.text.class_lists import warn_of_lists
from fcclip_jax.text.known_words import check_known
from fcclip_jax.text.vocabulary import Vocabulary, split_words

LARGEST_SIDE = 2048
"""Pixels: larger photographs are downscaled first, to 4 megapixels at most. One of the sides of `CANVAS_SIDES`."""


class Question(NamedTuple):
    """What a visitor asks."""

    photo: str | None
    """The uploaded file, None before there is one."""
    words: str
    """In the grammar that `text.vocabulary` defines."""
    stuff: str
    alpha: float
    beta: float
    void_trust: float
    """Of panoptic results."""


class Answer(NamedTuple):
    """What the page shows."""

    sentence: str
    result: Result | None
    """With all tasks; None if the question has no answer, for the reason that the sentence gives."""


class Answerer:
    """A segmenter that answers one visitor at a time, each in the visitor's own words, with one compiled program."""

    def __init__(self, segmenter: Segmenter):
        """Takes the segmenter over: nothing else may use it.

        Every photograph is padded into one square bucket, so that one program serves every shape.
        """
        self.segmenter = segmenter
        feeder = segmenter.engine.feeder
        side = round_up(feeder.max_side, STRIDE)
        segmenter.engine.feeder = Feeder(feeder.short_side, feeder.max_side, [(side, side)])
        segmenter.engine.expect([(side, side) for side in CANVAS_SIDES if side <= LARGEST_SIDE], limit=1)
        self._turn = threading.Lock()

    def warm_up(self, words: str, stuff: str) -> None:
        """Compiles the program, embeds these words, and loads what draws the results."""
        # Drawing's packages take a second to import, and then list the machine's fonts.
        from fcclip_jax.inference import visualize  # noqa: F401

        vocabulary = self._vocabulary(words, stuff)
        with self._turn:
            self.segmenter.set_classes(vocabulary)
            self.segmenter.warm_up([(LARGEST_SIDE, LARGEST_SIDE)])

    def answer(self, question: Question) -> Answer:
        """Segments the photograph, or says in one sentence why it cannot."""
        started = time.perf_counter()
        try:
            vocabulary = self._vocabulary(question.words, question.stuff)
            photo, note = read_photo(question.photo)
            with self._turn:
                self.segmenter.set_classes(vocabulary)
                result = self.segmenter(photo, void_trust=question.void_trust, alpha=question.alpha, beta=question.beta)
        except (ValueError, OSError, MemoryError) as error:
            return Answer(_sentence(str(error)), None)
        assert isinstance(result, Result)
        height, width = photo.shape[:2]
        seconds = time.perf_counter() - started
        sentence = f"{width} x {height} pixels, {seconds:.1f} s{note}; {vocabulary.summary()}."
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            warn_of_lists(vocabulary)
        sentences = [sentence, *(_sentence(str(doubt.message)) for doubt in doubts)]
        if missing := fonts.missing_letters(vocabulary.names):
            sentences.append(_sentence(missing))
        return Answer(" ".join(sentences), result)

    def _vocabulary(self, words: str, stuff: str) -> Vocabulary:
        classes = split_words(words)
        if not classes:
            raise ValueError("name at least one word to look for")
        vocabulary = Vocabulary.from_words(classes, split_words(stuff))
        check_known(vocabulary, self.segmenter.known_words, listed="the foot of the page")
        return vocabulary


def read_photo(path: str | None) -> tuple[UInt8[np.ndarray, "H W 3"], str]:
    """Returns the pixels of an upload, no side longer than `LARGEST_SIDE`, and a note if it was downscaled.

    Raises:
        ValueError: there is no file, or it is no image.
    """
    if path is None:
        raise ValueError("choose a photograph first")
    name = pathlib.Path(path).name
    try:
        with open(path, "rb") as file:
            pixels = image_sources.read(file, upright_rgb)
    except FileNotFoundError:
        raise ValueError(f"the file {name} is no longer here, because uploads are deleted; upload it again") from None
    except PILLOW_ERRORS as error:
        raise ValueError(f"the file {name} cannot be read: {_cause(error, path)}") from None
    height, width = pixels.shape[:2]
    if max(height, width) <= LARGEST_SIDE:
        return pixels, ""
    share = LARGEST_SIDE / max(height, width)
    small = max(1, round(width * share)), max(1, round(height * share))
    pixels = np.asarray(Image.fromarray(pixels).resize(small, Image.Resampling.BICUBIC, reducing_gap=2.0))
    megapixels = height * width / 1e6
    return pixels, f"; downscaled from {width} x {height} ({megapixels:.0f} megapixels)"


def _cause(error: BaseException, path: str) -> str:
    if isinstance(error, Image.DecompressionBombError):
        limit = math.floor(2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6)
        return f"it has more than {limit} megapixels"
    return reason(error).replace(path, "the file")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
