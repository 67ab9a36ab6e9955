"""An HTML page of the images with the lowest scores, each next to its annotation."""

import html
import pathlib
from collections.abc import Mapping

import numpy as np

from fcclip_jax.conventions import IGNORE
from fcclip_jax.evaluation.config import EvalSettings
from fcclip_jax.evaluation.examples import Examples
from fcclip_jax.evaluation.log import Line
from fcclip_jax.evaluation.loop import classes_in
from fcclip_jax.evaluation.rows import Example
from fcclip_jax.evaluation.scores import panoptic_counts, total_confusion
from fcclip_jax.files import write_files
from fcclip_jax.inference.engine import Engine
from fcclip_jax.inference.result_files import encode_jpeg
from fcclip_jax.inference.results import Result, truth_result
from fcclip_jax.metrics import panoptic, semantic
from fcclip_jax.text.vocabulary import Vocabulary

FOLDER = "worst"


def write(
    folder: pathlib.Path,
    lines: Mapping[int, Line],
    examples: Examples,
    engine: Engine,
    settings: EvalSettings,
    number: int,
) -> None:
    """Writes worst.html and its pictures. The images are segmented again, since the log contains only numbers.

    number: how many images the page shows.

    Raises:
        OSError: a file cannot be written.
    """
    classes = len(examples.vocabulary.classes)
    quality = {place: value for place, line in lines.items() if (value := _quality(line, classes)) is not None}
    worst = sorted(quality, key=lambda place: (quality[place], place))[:number]
    task = "panoptic" if "panoptic" in settings.tasks else "semantic"
    name = "PQ" if task == "panoptic" else "mIoU"
    chosen = {position: examples[place] for position, place in enumerate(worst)}
    stream = engine.segment(
        [example.image for example in chosen.values()],
        tasks=(task,),
        overlap_threshold=settings.overlap_threshold,
        void_trust=settings.void_trust,
        semantic_before_resize=settings.semantic_before_resize,
        offered=(lambda position: classes_in(chosen[position], classes)) if settings.grounding else None,
    )
    files, rows = {}, {}
    for position, result in stream:
        place = worst[position]
        truth = _truth(chosen[position], examples.vocabulary, task)
        pair = np.concatenate([np.asarray(each.draw(task)) for each in (result, truth)], axis=1)
        path = folder / FOLDER / f"{position + 1:03}.jpg"
        files[path] = encode_jpeg(pair, 90)
        shown = html.escape(str(examples.rows[place].image_id))
        rows[position] = (
            f"<h2>{position + 1}. {shown}: {name} {100 * quality[place]:.1f}</h2>\n"
            f'<img src="{FOLDER}/{path.name}" alt="{shown}, found and annotated" loading="lazy">'
        )
    body = "\n".join(rows[position] for position in sorted(rows))
    title = html.escape(f"{examples.name}: the worst {len(rows)} of {len(lines)} images")
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        "<style>body{font-family:sans-serif;margin:2em}img{max-width:100%}h2{font-size:1em}</style></head>\n"
        f"<body><h1>{title}</h1>\n<p>Left: found. Right: annotated.</p>\n{body}\n</body></html>\n"
    )
    write_files({**files, folder / "worst.html": page.encode()})


def _quality(line: Line, classes: int) -> float | None:
    """Returns an image's PQ or, else, its mIoU, averaged over its classes; None if it has none."""
    if "panoptic" in line:
        values = panoptic.quality(panoptic_counts(line, classes))[:, 0]
    elif "semantic" in line:
        values = semantic.iou_and_accuracy(total_confusion([line], classes))[:, 0]
    else:
        return None
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else None


def _truth(example: Example, vocabulary: Vocabulary, task: str) -> Result:
    if task == "panoptic":
        return truth_result(example.panoptic, example.image, vocabulary)
    classes = np.where(example.semantic == IGNORE, -1, example.semantic.astype(np.int64))
    return Result(example.image, vocabulary, None, classes, None)
