"""A segmenter that computes nothing, and helpers of the tests of `fcclip segment`."""

import json
import re

import numpy as np
from PIL import Image

from fcclip_jax.data.images import load_image, resized_shape
from fcclip_jax.inference import buckets
from fcclip_jax.models.descriptions import DefaultsDescription
from fcclip_jax.text.vocabulary import Vocabulary
from tests.inference.fake_results import fake_result


class FakeSegmenter:
    """Reads photographs as the real one does, and returns the same result for all of them."""

    known_words = None
    training_vocabulary = Vocabulary.from_words(["cat|kitten", "grass"], stuff=["grass"])
    defaults = DefaultsDescription(instance_threshold=0.5)

    def __init__(self, weights, *, interrupt_at, **options):
        self.weights, self.interrupt_at, self.options = weights, interrupt_at, options

    @property
    def settings(self):
        return {"weights": self.weights}

    def set_classes(self, classes):
        self.vocabulary = classes

    def stream(self, images, **options):
        images = list(images)
        self.options |= options
        self.asked = [image.name for image in images]
        for index, image in enumerate(images):
            if index == self.interrupt_at:
                raise KeyboardInterrupt
            try:
                pixels = load_image(image)
                if self.options["buckets"] is not None:
                    small = resized_shape(*pixels.shape[:2], self.options["short_side"], self.options["max_side"])
                    buckets.choose_bucket(small, self.options["buckets"])
            except (ValueError, OSError) as error:
                yield index, error
            else:
                yield index, fake_result(pixels.shape[:2], self.vocabulary)


class Made(list):
    interrupt_at = None
    """The index of the photograph before which later segmenters are interrupted."""


def write_photo(path, shape=(48, 64), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def files_in(folder):
    """Returns the files in a folder; the logs of several processes count as one."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted({re.sub(r"[^/]+\.jsonl$", "*.jsonl", name) for name in names})


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def fails(capsys, code, *, skipped=0):
    """Asserts exit code 2 and one sentence on stderr, after a line for each skipped photograph; returns the sentence."""
    assert code == 2
    # On a slow machine an earlier run in the test says how far it is.
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("segmenting: ")]
    assert len(lines) == 1 + skipped, lines
    assert lines[-1].startswith("error: ")
    return lines[-1]
