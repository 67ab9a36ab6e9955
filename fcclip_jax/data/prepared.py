"""Datasets in ArrayRecord files, written by `fcclip prepare` or by TFDS' own coco/2017_panoptic."""

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from fcclip_jax.data.coco_json import check_ids
from fcclip_jax.data.records import Record
from fcclip_jax.text.vocabulary import Vocabulary

_OFFICIAL_NAMES = {"val": "validation"}  # TFDS' names of the splits


class PreparedDataset:
    """The records of one split, read by random access. The images' bytes are not decoded."""

    def __init__(self, folder: epath.PathLike, split: str):
        """Opens the dataset whose dataset_info.json is in the folder.

        split: "train" or "val"; TFDS' name "validation" is found too.

        Raises:
            ValueError: the folder has no such split, has another format than ArrayRecord, or is not a panoptic dataset.
            FileNotFoundError: shards are missing.
        """
        builder = tfds.builder_from_directory(folder)
        split = split if split in builder.info.splits else _OFFICIAL_NAMES.get(split, split)
        if split not in builder.info.splits:
            raise ValueError(f"{folder} has no split {split!r}, only {', '.join(builder.info.splits) or 'nothing'}")
        missing_features = {"image", "image/id", "panoptic_image", "panoptic_objects"} - set(builder.info.features)
        if missing_features:
            raise ValueError(f"{folder} is not a panoptic dataset: its records have no {min(missing_features)!r}")
        if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(
                f"{folder} has the format {builder.info.file_format.value}, which has no random access; prepare it with"
                " file_format='array_record'"
            )
        missing = [path for path in builder.info.splits[split].filepaths if not epath.Path(path).exists()]
        if missing:
            raise FileNotFoundError(
                f"{missing[0]}, one of the shards of {folder}, does not exist; prepare the dataset again"
            )
        self.name = f"{builder.info.full_name} {split}"
        self.vocabulary = _vocabulary(builder.info)
        self._category_of = np.array([entry.id for entry in self.vocabulary.classes])
        raw = {"image": tfds.decode.SkipDecoding(), "panoptic_image": tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(split, decoders=raw)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        example = self._records[index]
        objects = {key: np.asarray(values, np.int64) for key, values in example["panoptic_objects"].items()}
        image_id, file_name = example["image/id"], example["image/filename"].decode()
        check_ids(objects["id"], file_name)
        return Record(
            image_id=image_id.decode() if isinstance(image_id, bytes) else int(image_id),
            file_name=file_name,
            image=example["image"],
            panoptic=example["panoptic_image"],
            segments=np.stack([objects["id"], self._category_of[objects["label"]], objects["is_crowd"]], axis=1),
        )


def _vocabulary(info: tfds.core.DatasetInfo) -> Vocabulary:
    if info.metadata and "vocabulary" in info.metadata:
        return Vocabulary.from_json(info.metadata["vocabulary"])
    # TFDS' own builder numbers COCO's categories in the order of the annotation, like this vocabulary.
    return Vocabulary.load("coco_panoptic")
