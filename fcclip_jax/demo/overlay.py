"""A result as HTML: the picture, what the pointer is over, a table of segments, and downloads.

Everything is inside the page, as data URIs: the server keeps no file. overlay.js looks the pointer's pixel up in a map of
segment numbers.
"""

import base64
import html
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from fcclip_jax.inference import result_files
from fcclip_jax.inference.results import Result
from fcclip_jax.inference.segments import Instance, Segment

_FOLDER = pathlib.Path(__file__).parent
SCRIPT = (_FOLDER / "overlay.js").read_text("utf-8")
STYLE = (_FOLDER / "overlay.css").read_text("utf-8")

NAME = "photograph"
"""The name of downloads."""


class Row(NamedTuple):
    """A segment, as the table shows it."""

    number: int
    """Its value in the map."""
    name: str
    kind: str
    score: float | None
    """None for semantic classes, which have none."""
    area: int
    """Pixels that the map gives to it."""
    color: tuple[int, int, int]


def render(result: Result, task: str, threshold: float) -> str:
    """Returns the HTML of one task's result.

    threshold: the minimum score of an instance that is shown.
    """
    id_map, rows = mapped(result, task, threshold)
    picture = _uri("image/jpeg", _jpeg(result, task, threshold))
    numbers = _uri("image/png", result_files.encode_png(result_files.encode_ids(id_map)))
    pixels = id_map.size
    found = f"{len(rows)} segment{'s' * (len(rows) != 1)}"
    links = [
        _link(picture, f"{NAME}.{task}.jpg", "Picture"),
        _link(
            _uri("application/json", json.dumps(coco(result, task, threshold)).encode()), f"{task}.json", "COCO JSON"
        ),
    ]
    if task == "panoptic":
        links.append(_link(numbers, f"{NAME}.png", "COCO panoptic PNG"))
    if task == "semantic":
        classes = _uri("image/png", result_files.encode_semantic(result.semantic, result.vocabulary))
        links.append(_link(classes, f"{NAME}.png", "Semantic PNG"))
    body = "".join(_table_row(row, pixels) for row in rows)
    return (
        f'<figure class="result"><div class="picture"><img class="drawn" src="{picture}" alt="{found}, drawn">'
        f'<img class="numbers" src="{numbers}" alt="" hidden><canvas class="highlight"></canvas>'
        '<output class="hover" hidden></output></div>'
        f"<figcaption>{found}. Hover over the picture, or tap it.</figcaption></figure>"
        f'<p class="downloads">Download: {" ".join(links)}</p>'
        '<table class="segments"><thead><tr><th>Name</th><th>Kind</th><th>Score</th><th>Area</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def mapped(result: Result, task: str, threshold: float) -> tuple[Int[np.ndarray, "H W"], list[Row]]:
    """Returns a map of the numbers of segments, 0 where there is none, and the segments, the largest first.

    Where instances overlap, the map has the one with the best score.
    """
    if task == "panoptic":
        return result.panoptic.id_map, _by_area(
            [_row(segment.id, segment, segment.area) for segment in result.panoptic.segments]
        )
    if task == "semantic":
        id_map = result.semantic + 1
        areas = np.bincount(id_map.reshape(-1), minlength=len(result.vocabulary.classes) + 1)[1:]
        entries = zip(result.vocabulary.classes, areas.tolist(), strict=True)
        rows = [
            Row(number, entry.name, _kind(entry.is_thing), None, area, entry.color)
            for number, (entry, area) in enumerate(entries, start=1)
            if area
        ]
        return id_map, _by_area(rows)
    id_map = np.zeros(result.image.shape[:2], np.int32)
    kept = _kept(result, threshold)
    for number, instance in reversed(list(enumerate(kept, start=1))):
        id_map[instance.mask] = number
    return id_map, [_row(number, instance, instance.area) for number, instance in enumerate(kept, start=1)]


def coco(result: Result, task: str, threshold: float) -> dict[str, Any]:
    """Returns the result in COCO's format: the file that `fcclip segment` writes for one photograph."""
    height, width = result.image.shape[:2]
    annotations: list[dict[str, Any]] = []
    if task == "panoptic":
        segments = result_files.segments_info(result.panoptic)
        annotations = [{"image_id": 1, "file_name": f"{NAME}.png", "segments_info": segments}]
    elif task == "instances":
        annotations = [
            {"id": number, **result_files.instance_record(1, instance), "area": instance.area, "iscrowd": 0}
            for number, instance in enumerate(_kept(result, threshold), start=1)
        ]
    return {
        "info": {},
        "images": [{"id": 1, "file_name": f"{NAME}.jpg", "width": width, "height": height}],
        "categories": result_files.categories(result.vocabulary),
        "annotations": annotations,
    }


def escape(text: str) -> str:
    """Escapes a visitor's text for HTML inside Gradio's templates, in which $ and { have a meaning."""
    return html.escape(text).replace("{", "&#123;").replace("$", "&#36;").replace("`", "&#96;")


def _kept(result: Result, threshold: float) -> list[Instance]:
    return [instance for instance in result.instances if instance.score >= threshold]


def _row(number: int, part: Segment | Instance, area: int) -> Row:
    return Row(number, part.name, _kind(part.entry.is_thing), part.score, area, part.entry.color)


def _kind(is_thing: bool) -> str:
    return "thing" if is_thing else "stuff"


def _by_area(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -row.area)


def _table_row(row: Row, pixels: int) -> str:
    score = "" if row.score is None else f"{row.score:.2f}"
    area = f"{row.area:,} px ({row.area / pixels:.1%})"
    name = escape(row.name)
    label = f"{name}{f', score {score}' if score else ''}, {area}"
    swatch = f'<i style="background:rgb{row.color}"></i>'
    return (
        f'<tr data-number="{row.number}" data-label="{label}"><td>{swatch}{name}</td><td>{row.kind}</td>'
        f"<td>{score}</td><td>{area}</td></tr>"
    )


def _jpeg(result: Result, task: str, threshold: float) -> bytes:
    # Chroma at full resolution: coloured labels would blur.
    return result_files.encode_jpeg(np.asarray(result.draw(task, threshold=threshold)), 92, subsampling=0)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _link(uri: str, file: str, text: str) -> str:
    return f'<a download="{file}" href="{uri}">{text}</a>'
