"""Writes a dataset as ArrayRecord shards: few large files that any host reads at random, where a folder has 200,000."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tqdm import tqdm

from fcclip_jax.data import datasets
from fcclip_jax.data.folder import FolderDataset
from fcclip_jax.data.tfds_builder import IMAGES_PER_SHARD, FcclipPanoptic

_PLAN = "plan.json"
"""In the folder: what it holds, or is going to."""


def write_shards(
    sources: Mapping[str, FolderDataset], output: epath.PathLike, images_per_shard: int = IMAGES_PER_SHARD
) -> int:
    """Writes the sources, by the name of their split, to a folder that `tfds.builder_from_directory` opens.

    A run that was stopped goes on after its last whole shard when it is repeated. Returns how many images this run wrote:
    0 where all was there.

    Raises:
        ValueError: the folder holds, or was going to hold, something else.
        OSError: an image or a PNG cannot be read, or the folder cannot be written.
    """
    folder = epath.Path(output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    _check_plan(folder, {"digest": _digest(sources), "images_per_shard": images_per_shard})
    if datasets.is_prepared(folder):
        return 0
    builder = FcclipPanoptic(sources=sources, images_per_shard=images_per_shard, data_dir=folder)
    written, splits = 0, []
    with tqdm(desc="preparing", total=sum(map(len, sources.values())), unit="image", disable=None) as progress:
        for split, source in sources.items():
            template = tfds.core.ShardedFileTemplate(
                folder, dataset_name=builder.name, split=split, filetype_suffix=builder.info.file_format.file_suffix
            )
            shards = builder.shards(split)
            paths, lengths = template.sharded_filepaths(len(shards)), []
            for start, (path, examples) in enumerate(zip(paths, shards, strict=True)):
                length = min(images_per_shard, len(source) - start * images_per_shard)
                lengths.append(length)
                if path.exists():
                    progress.update(length)
                else:
                    _write_shard(builder.info.features, examples(), path, progress)
                    written += length
            size = sum(path.stat().length for path in paths)
            splits.append(tfds.core.SplitInfo(split, lengths, size, filename_template=template))
    builder.info.set_splits(tfds.core.SplitDict(splits))
    builder.info.write_to_directory(folder)
    return written


def _write_shard(
    features: tfds.features.FeaturesDict, examples: Iterable[tuple[int, dict]], path: epath.Path, progress: tqdm
) -> None:
    """Under another name until it is whole."""
    partial = path.with_name(f"{path.name}.partial")
    writer = ArrayRecordWriter(os.fspath(partial), "group_size:1")  # one record a group: any of them is read alone
    for _, example in examples:
        writer.write(features.serialize_example(example))
        progress.update()
    writer.close()
    partial.rename(path)


def _check_plan(folder: epath.Path, plan: dict) -> None:
    """Shards of other data, or cut differently, must not be mixed with these."""
    journal = folder / _PLAN
    if journal.exists():
        if json.loads(journal.read_text()) != plan:
            raise ValueError(f"{folder} holds, or was going to hold, other data; empty it or choose another folder")
        return
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty, and nothing was being prepared there; choose another folder")
    journal.write_text(json.dumps(plan))


def _digest(sources: Mapping[str, FolderDataset]) -> str:
    parts = [(split, source.vocabulary.to_json(), source.digest) for split, source in sources.items()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
