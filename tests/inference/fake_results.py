"""Results without a network: rectangles at known places."""

import numpy as np

from fcclip_jax.inference.results import Result
from fcclip_jax.inference.segments import Instance, Panoptic, Segment
from fcclip_jax.text.vocabulary import Vocabulary

WORDS = Vocabulary.from_words(["cat, kitten", "remote control", "sofa"], stuff=["sofa"])


def pack(class_index, score, box, mask, vocabulary) -> Instance:
    """Packs the mask column by column, 8 rows to a byte, the first in the lowest bit."""
    height, width = mask.shape
    columns = np.pad(mask, ((0, -height % 8), (0, 0))).T.reshape(width, -1, 8)
    bits = (columns * (1 << np.arange(8))[None, None, :]).sum(axis=2).astype(np.uint8)
    return Instance(class_index, vocabulary.classes[class_index], score, int(mask.sum()), box, bits, height)


def rectangle(shape, box):
    mask = np.zeros(shape, bool)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return mask


def fake_result(shape=(90, 120), vocabulary=WORDS, seed=0) -> Result:
    """A sofa with two cats, one in front of the other, and void to the right; the instances are the whole cats."""
    height, width = shape
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    sofa = (0, 0, width * 3 // 4, height)
    back = (width // 8, height // 8, width // 2, height // 2)
    front = (width // 4, height // 4, width * 5 // 8, height * 3 // 4)
    id_map = np.zeros(shape, np.int32)
    for id, box in enumerate((sofa, back, front), start=1):
        id_map[rectangle(shape, box)] = id
    stuff = len(vocabulary.classes) - 1
    segments = [
        Segment(id, index, vocabulary.classes[index], score, int((id_map == id).sum()), box)
        for id, index, score, box in ((1, stuff, 0.75, sofa), (2, 0, 0.5, back), (3, 0, 0.875, front))
    ]
    instances = [
        pack(0, score, box, rectangle(shape, box), vocabulary) for score, box in ((0.875, front), (0.25, back))
    ]
    semantic = np.array([stuff, stuff, 0, 0], np.int32)[id_map]
    return Result(image, vocabulary, Panoptic(id_map, segments), semantic, instances)


def empty_result(shape=(40, 50), vocabulary=WORDS) -> Result:
    """An image of void alone, without a semantic map, which cannot be void."""
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    return Result(image, vocabulary, Panoptic(np.zeros(shape, np.int32), []), None, [])
