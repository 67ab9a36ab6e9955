"""Writes scenes as a folder in COCO's panoptic format, which configs/custom.py reads like anyone's own data."""

import json
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from etils import epath

from fcclip_jax import files, progress
from fcclip_jax.data.annotations.pixels import area_and_box
from fcclip_jax.data.datasets import Layout
from fcclip_jax.data.decoding import decode_ids
from fcclip_jax.data.records import Dataset, Record
from fcclip_jax.text.vocabulary import Vocabulary


@runtime_checkable
class Composed(Dataset, Protocol):
    """A dataset whose records are composed, such as WorldDataset."""

    @property
    def digest(self) -> str: ...


def write_folder(
    datasets: Mapping[str, Composed], output: epath.PathLike, layouts: Mapping[str, Layout] | None = None
) -> int:
    """Writes the datasets by the name of their split.

    The images of WorldDataset are PNGs, so that training on the folder sees the very pixels of the scenes that are composed
    while training; they take about 100 kB each. A repeated call keeps finished files and writes the others. Returns the
    number of images that this call wrote.

    layouts: where the files of each split are; by default SPLIT/ with images, panoptic_SPLIT/ with maps, and
        panoptic_SPLIT.json.

    Raises:
        ValueError: the folder contains other data.
        OSError: the folder cannot be written.
    """
    folder = epath.Path(output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    files.claim(folder, {split: dataset.digest for split, dataset in datasets.items()})
    written = 0
    with progress.track(desc="composing", total=sum(map(len, datasets.values()))) as bar:
        for split, dataset in datasets.items():
            layout = layouts[split] if layouts else Layout(split, f"panoptic_{split}.json", (f"panoptic_{split}",), "")
            images, annotations = [], []
            for index in range(len(dataset)):
                record = dataset[index]
                written += _write(record, folder / layout.images, folder / layout.pngs[0])
                annotation, (height, width) = _annotation(record)
                annotations.append(annotation)
                images.append({"id": index, "file_name": record.file_name, "height": height, "width": width})
                bar.update()
            content = {"images": images, "annotations": annotations, "categories": _categories(dataset.vocabulary)}
            with files.replacing(folder / layout.json, sole_writer=True) as partial:
                partial.write_text(json.dumps(content), "utf-8")
    return written


def _write(record: Record, images: epath.Path, maps: epath.Path) -> bool:
    """Writes what is missing of a record's two files; returns whether it wrote the image."""
    missing = {
        path: content
        for path, content in ((maps / _map_name(record), record.panoptic), (images / record.file_name, record.image))
        if not path.exists()
    }
    for path, content in missing.items():
        with files.replacing(path, sole_writer=True) as partial:
            partial.write_bytes(content)
    return images / record.file_name in missing


def _map_name(record: Record) -> str:
    return f"{epath.Path(record.file_name).stem}.png"


def _annotation(record: Record) -> tuple[dict, tuple[int, int]]:
    """Returns a record's entry in the json, and its (height, width)."""
    ids = decode_ids(record.panoptic)
    segments = [
        {"id": id, "category_id": category, "iscrowd": crowd, **area_and_box(ids == id)}
        for id, category, crowd in record.segments.tolist()
    ]
    return {"image_id": record.image_id, "file_name": _map_name(record), "segments_info": segments}, ids.shape


def _categories(vocabulary: Vocabulary) -> list[dict]:
    return [
        {"id": entry.id, "name": ", ".join(entry.names), "isthing": int(entry.is_thing), "color": entry.color}
        for entry in vocabulary.classes
    ]
