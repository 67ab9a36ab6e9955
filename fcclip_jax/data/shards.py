"""Writes a dataset as ArrayRecord shards: a few large files with random access instead of 200,000 small ones."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from fcclip_jax import files, progress
from fcclip_jax.data import tfds_builder
from fcclip_jax.data.datasets import is_prepared
from fcclip_jax.data.folder import FolderDataset


def write_shards(datasets: Mapping[str, FolderDataset], output: epath.PathLike) -> int:
    """Writes the datasets, by the name of their split, to a folder that `tfds.builder_from_directory` opens.

    If the folder already has finished shards of the same data, the run resumes after them. Returns the number of images
    that this run wrote.

    Raises:
        ValueError: the folder contains other data, or the beginning of it.
        OSError: an image or a PNG cannot be read, or the folder cannot be written.
    """
    folder = epath.Path(output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    files.claim(folder, {"digest": _digest(datasets), "images_per_shard": tfds_builder.IMAGES_PER_SHARD})
    if is_prepared(folder):
        return 0
    builder = tfds_builder.FcclipPanoptic(datasets=datasets, data_dir=folder)
    written, splits = 0, []
    with progress.track(desc="preparing", total=sum(map(len, datasets.values()))) as bar:
        for split in datasets:
            template = tfds.core.ShardedFileTemplate(
                folder, dataset_name=builder.name, split=split, filetype_suffix=builder.info.file_format.file_suffix
            )
            shards = builder.shards(split)
            paths, lengths = template.sharded_filepaths(len(shards)), [shard.length for shard in shards]
            for path, shard in zip(paths, shards, strict=True):
                if path.exists():
                    bar.update(shard.length)
                else:
                    _write_shard(builder.info.features, shard.examples(), path, bar)
                    written += shard.length
            size = sum(path.stat().length for path in paths)
            splits.append(tfds.core.SplitInfo(split, lengths, size, filename_template=template))
    builder.info.set_splits(tfds.core.SplitDict(splits))
    builder.info.write_to_directory(folder)
    return written


def _write_shard(
    features: tfds.features.FeaturesDict, examples: Iterable[tuple[int, dict]], path: epath.Path, bar: progress.Progress
) -> None:
    with files.replacing(path, sole_writer=True) as partial:
        writer = ArrayRecordWriter(os.fspath(partial), "group_size:1")  # groups of one record, for random access
        for _, example in examples:
            writer.write(features.serialize_example(example))
            bar.update()
        writer.close()


def _digest(datasets: Mapping[str, FolderDataset]) -> str:
    parts = [(split, dataset.vocabulary.to_json(), dataset.digest) for split, dataset in datasets.items()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
