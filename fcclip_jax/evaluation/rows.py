"""One image to evaluate with its annotations: in files, or a record of a dataset."""

import os
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8, UInt16

from fcclip_jax.data import images
from fcclip_jax.data.decoding import decode_image
from fcclip_jax.data.records import Dataset
from fcclip_jax.evaluation.ground_truth import LabelMap, PanopticSource, read_instance_ids, semantic_from_panoptic
from fcclip_jax.inference.truth import read_truth
from fcclip_jax.metrics.panoptic import Truth
from fcclip_jax.text.vocabulary import Vocabulary


class Example(NamedTuple):
    """One photograph with its annotations, decoded."""

    image: UInt8[np.ndarray, "H W 3"]
    panoptic: Truth | None
    semantic: UInt16[np.ndarray, "H W"]
    """Class indices, from 0 in the vocabulary; ignored pixels are IGNORE."""
    instance_ids: UInt16[np.ndarray, "H W"] | None
    """Cityscapes' instance ids, as metrics.cityscapes reads them."""


class Row(NamedTuple):
    """One photograph with its annotations, on disk."""

    image_id: int | str
    image_path: epath.Path
    panoptic: PanopticSource | None = None
    labels: LabelMap | None = None
    """None derives classes from `panoptic`."""
    instance_ids: epath.Path | None = None
    """Cityscapes' *_instanceIds.png."""

    def maps(self) -> dict[str, epath.Path]:
        """The files that have the photograph's size, by their names in error messages."""
        paths = {
            "panoptic map": self.panoptic and self.panoptic.png_path,
            "label map": self.labels and self.labels.path,
            "instance map": self.instance_ids,
        }
        return {name: path for name, path in paths.items() if path is not None}

    def read(self, vocabulary: Vocabulary) -> Example:
        """Decodes the photograph and its annotations.

        Raises:
            OSError, ValueError: a file cannot be read or does not fit the others; the message is one sentence.
        """
        image = images.load_image(os.fspath(self.image_path))
        truth = self.panoptic and self.panoptic.read(vocabulary)
        semantic = self.labels.read(vocabulary) if self.labels else semantic_from_panoptic(truth)
        instance_ids = self.instance_ids and read_instance_ids(self.instance_ids)
        maps = {"panoptic map": truth and truth.id_map, "label map": semantic, "instance map": instance_ids}
        for name, array in maps.items():
            if array is not None and array.shape != image.shape[:2]:
                raise ValueError(size_mismatch(self.image_path, image.shape[:2], name, array.shape))
        return Example(image, truth, semantic, instance_ids)

    @property
    def has_panoptic(self) -> bool:
        return self.panoptic is not None


class RecordRow(NamedTuple):
    """One record of a dataset that has panoptic annotations but no files."""

    image_id: int | str
    image_path: epath.Path
    """Names the image in messages and results; there is no such file."""
    dataset: Dataset
    index: int

    @property
    def has_panoptic(self) -> bool:
        return True

    def read(self, vocabulary: Vocabulary) -> Example:
        """Decodes the record, as `Row.read`."""
        record = self.dataset[self.index]
        truth = read_truth(record, vocabulary)
        return Example(decode_image(record.image), truth, semantic_from_panoptic(truth), None)


def size_mismatch(path: epath.Path, size: tuple[int, int], what: str, found: tuple[int, int]) -> str:
    """Returns the sentence about an image whose annotation has another size; sizes are (height, width)."""
    return f"{path} is {size[1]}x{size[0]} pixels, but its {what} is {found[1]}x{found[0]}"
