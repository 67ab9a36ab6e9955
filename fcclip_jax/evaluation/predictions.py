"""Saves results in the public formats during an evaluation.

predictions/panoptic.json, panoptic/NAME.png   COCO's panoptic format
predictions/instances.json                     COCO's result format
predictions/semantic/NAME.png                  a pixel's class, from 0 in the vocabulary
predictions/images.json                        the images, and the categories

NAME is the photograph's file name without its suffix; if several share a name, the later ones get -2, -3 and so on.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from fcclip_jax.evaluation.examples import Examples
from fcclip_jax.evaluation.log import Line
from fcclip_jax.files import write_files
from fcclip_jax.inference.result_files import (
    categories,
    encode_ids,
    encode_png,
    encode_semantic,
    instance_record,
    name_photos,
    segments_info,
)
from fcclip_jax.inference.results import Result

FOLDER = "predictions"


def names_of(examples: Examples) -> list[str]:
    """Returns the NAME of each photograph."""
    return [photo.name for photo in name_photos([pathlib.Path(row.image_path) for row in examples.rows])]


def save(folder: pathlib.Path, name: str, image_id: int | str, result: Result) -> dict[str, Any]:
    """Writes an image's maps, and returns its entries of the json files, which its line keeps until `finish`.

    name: its NAME, from `names_of`.

    Raises:
        OSError: a map cannot be written.
    """
    files, entries = {}, {}
    if "panoptic" in result.tasks:
        files[folder / FOLDER / "panoptic" / f"{name}.png"] = encode_png(encode_ids(result.panoptic.id_map))
        entries["segments_info"] = segments_info(result.panoptic)
    if "semantic" in result.tasks:
        files[folder / FOLDER / "semantic" / f"{name}.png"] = encode_semantic(result.semantic, result.vocabulary)
    if "instances" in result.tasks:
        entries["instances"] = [instance_record(image_id, each) for each in result.instances]
    write_files(files)
    return entries


def finish(folder: pathlib.Path, lines: Mapping[int, Line], examples: Examples) -> None:
    """Writes the json files, from all lines; raises OSError if they cannot be written."""
    names = names_of(examples)
    images = [
        {
            "id": line["image_id"],
            "file_name": examples.rows[index].image_path.name,
            "height": line["size"][0],
            "width": line["size"][1],
        }
        for index, line in lines.items()
    ]
    head = {"images": images, "categories": categories(examples.vocabulary)}
    contents: dict[str, Any] = {"images.json": {"info": {}, **head, "annotations": []}}
    first = next(iter(lines.values()))
    if "segments_info" in first:
        annotations = [
            {"image_id": line["image_id"], "file_name": f"{names[index]}.png", "segments_info": line["segments_info"]}
            for index, line in lines.items()
        ]
        contents["panoptic.json"] = {"info": {}, **head, "annotations": annotations}
    if "instances" in first:
        contents["instances.json"] = [each for line in lines.values() for each in line["instances"]]
    write_files({folder / FOLDER / name: json.dumps(content).encode() for name, content in contents.items()})
