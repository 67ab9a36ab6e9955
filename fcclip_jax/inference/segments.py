"""The parts of a result: panoptic segments and instances, on the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from fcclip_jax.inference.postprocess import unpack_mask
from fcclip_jax.text.vocabulary import VocabularyClass

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, upper ends excluded."""


class Segment(NamedTuple):
    """One region of a panoptic map."""

    id: int
    """Its value in the map, from 1."""
    class_index: int
    """Its class, counted from 0 in the vocabulary."""
    entry: VocabularyClass
    score: float
    area: int
    """Pixels."""
    box: Box

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def is_thing(self) -> bool:
        return self.entry.is_thing


class Panoptic(NamedTuple):
    """A map in which every pixel belongs to one segment, or to void."""

    id_map: Int[np.ndarray, "H W"]
    """Segment ids; 0 is void."""
    segments: list[Segment]


class Instance(NamedTuple):
    """One thing; instances may overlap."""

    class_index: int
    """Its class, counted from 0 in the vocabulary."""
    entry: VocabularyClass
    score: float
    area: int
    """Pixels."""
    box: Box
    mask_bits: UInt8[np.ndarray, "W H8"]
    """The mask, column by column, 8 rows to a byte, the first row in the lowest bit."""
    height: int
    """Pixels of the image."""

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """Its pixels, at the image's size; each access unpacks them again."""
        return unpack_mask(self.mask_bits, (self.height, self.mask_bits.shape[0]))
