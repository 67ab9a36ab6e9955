"""A dataset that is a folder in COCO's panoptic format."""

import hashlib
import json

import numpy as np
from etils import epath
from jaxtyping import Int

from fcclip_jax.data.coco_json import ImageId, PanopticJson, read_panoptic, vocabulary_of
from fcclip_jax.data.file_names import FileNames, list_files
from fcclip_jax.data.records import Record
from fcclip_jax.text.vocabulary import Vocabulary


class FolderDataset:
    """A folder of images, a folder of panoptic PNGs, and the json that connects them; no preparation is needed."""

    def __init__(
        self,
        images: epath.PathLike,
        panoptic_json: epath.PathLike,
        panoptic_pngs: epath.PathLike,
        vocabulary: Vocabulary | None = None,
        *,
        image_name: str | None = None,
    ):
        """Checks everything that can be checked without opening an image. Images may be in subfolders.

        vocabulary: by default the json's categories.
        image_name: a template that makes an image's file name from its id, such as "{}_leftImg8bit.png"; by default the
            json's file_name.

        Raises:
            FileNotFoundError: a folder, the json, or an image or a PNG that the json names is missing.
            ValueError: `read_panoptic` refuses the json, it has a category that is not in the vocabulary, or one of its
                file names fits several files or the file of another image.
        """
        image_folder, png_folder = epath.Path(images).expanduser(), epath.Path(panoptic_pngs).expanduser()
        path = epath.Path(panoptic_json).expanduser()
        image_files = FileNames(image_folder, list_files(image_folder, "images"))
        png_files = FileNames(png_folder, list_files(png_folder, "panoptic PNGs"))
        found = read_panoptic(path)
        self.name = path.stem
        self.vocabulary = vocabulary or vocabulary_of(found.categories, path)
        _check_known(found, self.vocabulary)
        self.image_ids: list[ImageId] = found.image_ids
        self._files = [image_name.format(id) for id in found.image_ids] if image_name else found.files
        self._png_files = found.png_files
        self._segments, self._areas, self._ends = found.segments, found.areas, found.ends
        self.image_paths = image_files.find_all(self._files, path, self.image_ids)
        self.png_paths = png_files.find_all(self._png_files, path, self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Record:
        start = self._ends[index - 1] if index else 0
        return Record(
            image_id=self.image_ids[index],
            file_name=self._files[index],
            image=self.image_paths[index].read_bytes(),
            panoptic=self.png_paths[index].read_bytes(),
            segments=self._segments[start : self._ends[index]],
        )

    def areas(self, index: int) -> Int[np.ndarray, " N"] | None:
        """Returns the json's area of each of a record's segments in pixels, or None if one is missing."""
        areas = self._areas[self._ends[index - 1] if index else 0 : self._ends[index]]
        return None if (areas < 0).any() else areas

    @property
    def digest(self) -> str:
        """A checksum of the json's content and of the file names, but not of the files' contents."""
        names = json.dumps([self.image_ids, self._files, self._png_files, self._ends.tolist()])
        return hashlib.sha256(names.encode() + self._segments.tobytes() + self._areas.tobytes()).hexdigest()


def _check_known(found: PanopticJson, vocabulary: Vocabulary) -> None:
    categories = found.segments[:, 1]
    known = np.isin(categories, [entry.id for entry in vocabulary.classes])
    if not known.all():
        row = int(np.argmin(known))
        raise ValueError(
            f"{found.where(row)} has the category {categories[row]}, which is not in the vocabulary {vocabulary.name!r}"
        )
