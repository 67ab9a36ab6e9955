"""Defines a record, which is one annotated image in stored form, and a dataset, which is a sequence of records."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from fcclip_jax.text.vocabulary import Vocabulary


class Record(NamedTuple):
    """One image with its panoptic annotation, in stored form."""

    image_id: int | str
    file_name: str
    """The image's file name, without its folder."""
    image: bytes
    """The image file, usually a JPEG."""
    panoptic: bytes
    """A PNG whose colours are segment ids: R + 256 G + 65536 B, 0 for void."""
    segments: Int[np.ndarray, "N 3"]
    """(id, category id, 1 if it is a crowd) of each segment; int64."""


@runtime_checkable
class Dataset(Protocol):
    """Records in a fixed order. The ids of the vocabulary's classes are the records' category ids."""

    name: str
    vocabulary: Vocabulary

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raises OSError or ValueError, in one sentence, for a record that cannot be read."""
        ...
