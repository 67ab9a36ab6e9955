"""Turns one image's segmentation into a line of numbers, and all lines into scores.

A line contains values that JSON can represent:

    index, image_id, size (height, width)
    panoptic     [class, true positives, false positives, false negatives, sum of IoU] of each class that occurs
    semantic     [annotated class, found class, pixels] of each pair that occurs
    instances    detections in COCO's result format
    matches      metrics.cityscapes' matches instead, for Cityscapes
    things       the panoptic annotation's things as COCO annotations, without another instance annotation
    sweep        "panoptic" of every way to classify masks, instead of all of the above but index and image_id
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco_mask

from fcclip_jax.conventions import IGNORE
from fcclip_jax.evaluation.examples import Examples
from fcclip_jax.evaluation.log import Line
from fcclip_jax.evaluation.paper_tables import SCORES, Sweep
from fcclip_jax.evaluation.rows import Example
from fcclip_jax.inference.result_files import instance_record
from fcclip_jax.inference.results import Result
from fcclip_jax.metrics import cityscapes, instance, panoptic, semantic
from fcclip_jax.metrics.cityscapes import CityscapesPrecision
from fcclip_jax.metrics.instance import AveragePrecision
from fcclip_jax.metrics.panoptic import PanopticCounts, Truth
from fcclip_jax.text.vocabulary import Vocabulary


def image_line(examples: Examples, index: int, example: Example, result: Result) -> Line:
    """Scores one image; tasks that the result does not have are left out."""
    classes = len(examples.vocabulary.classes)
    image_id = examples.rows[index].image_id
    line: dict[str, Any] = {"index": index, "image_id": image_id, "size": list(result.image.shape[:2])}
    if "panoptic" in result.tasks and example.panoptic is not None:
        line["panoptic"] = panoptic_rows(example.panoptic, result, classes)
    if "semantic" in result.tasks:
        confusion = semantic.count(example.semantic, result.semantic, classes, IGNORE)
        pairs = np.argwhere(confusion)
        line["semantic"] = [[int(t), int(f), int(confusion[t, f])] for t, f in pairs]
    if "instances" in result.tasks:
        found = result.instances
        if example.instance_ids is not None:
            detections = [cityscapes.Detection(each.entry.id, each.score, each.mask) for each in found]
            line["matches"] = cityscapes.match(example.instance_ids, detections)
            return line
        line["instances"] = [instance_record(image_id, each) for each in found]
        if examples.instances is None and example.panoptic is not None:
            line["things"] = things_of(image_id, example.panoptic, examples.vocabulary)
    return line


def sweep_line(examples: Examples, index: int, example: Example, results: Sequence[Result]) -> Line:
    """Scores one image's panoptic result for each way of a sweep."""
    classes = len(examples.vocabulary.classes)
    rows = [panoptic_rows(example.panoptic, result, classes) for result in results]
    return {"index": index, "image_id": examples.rows[index].image_id, "sweep": rows}


def panoptic_rows(truth: Truth, result: Result, classes: int) -> list[list[int | float]]:
    """Returns a line's "panoptic"."""
    found = np.asarray([segment.class_index for segment in result.panoptic.segments], np.int64)
    counts = panoptic.count(truth, result.panoptic.id_map, found, classes)
    rows = np.flatnonzero(counts.true_positives + counts.false_positives + counts.false_negatives)
    return [[int(row), *(array[row].item() for array in counts)] for row in rows]


def panoptic_counts(line: Line, classes: int) -> PanopticCounts:
    """Returns the counts of a line's "panoptic"."""
    counts = PanopticCounts.zeros(classes)
    for row, *values in line["panoptic"]:
        for array, value in zip(counts, values, strict=True):
            array[row] = value
    return counts


def things_of(image_id: int | str, truth: Truth, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Returns an image's annotated things as COCO's instance annotations, without ids."""
    annotations = []
    for id, class_index, crowd in zip(truth.ids, truth.classes, truth.crowds, strict=True):
        entry = vocabulary.classes[class_index]
        mask = truth.id_map == id
        if entry.is_thing and mask.any():
            encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": entry.id,
                    "iscrowd": int(crowd),
                    "area": int(mask.sum()),
                    "bbox": coco_mask.toBbox(encoded).tolist(),
                    "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
                }
            )
    return annotations


def total_counts(lines: Sequence[Line], classes: int) -> PanopticCounts:
    """Sums the lines' counts in their order, so that the rounding of fractions is always the same."""
    each = (panoptic_counts(line, classes) for line in lines)
    return functools.reduce(PanopticCounts.plus, each, PanopticCounts.zeros(classes))


def total_confusion(lines: Sequence[Line], classes: int) -> Int[np.ndarray, "K1 K1"]:
    """Sums the lines' pixels by [annotated class, found class]; the last row and column are for ignored pixels."""
    total = np.zeros((classes + 1, classes + 1), np.int64)
    for line in lines:
        pairs = np.asarray(line["semantic"], np.int64).reshape(-1, 3)
        total[pairs[:, 0], pairs[:, 1]] += pairs[:, 2]  # each pair occurs once in a line
    return total


class Scores(NamedTuple):
    """Scores of a dataset, in percent, by the names of `report.NAMES`."""

    overall: dict[str, float]
    """PQ, SQ and RQ of a group of classes without any that occurs are left out; other such scores are NaN."""
    classes: list[dict[str, Any]]
    """Scores of each class, NaN where it does not occur, with its id, name, and whether it is a thing and seen."""


def summarize(lines: Sequence[Line], examples: Examples, seen: Sequence[bool]) -> Scores:
    """Computes a dataset's scores from its lines, in the images' order.

    seen: whether each class occurs in the training vocabulary.
    """
    vocabulary = examples.vocabulary
    things, known = np.asarray(vocabulary.thing_mask), np.asarray(seen)
    whole = Scores(
        {},
        [
            {"id": entry.id, "name": entry.name, "thing": entry.is_thing, "seen": bool(known[index])}
            for index, entry in enumerate(vocabulary.classes)
        ],
    )
    training_groups = {"_seen": known, "_unseen": ~known}
    if any("panoptic" in line for line in lines):
        groups = {"": np.ones_like(known), "_things": things, "_stuff": ~things, **training_groups}
        _add_panoptic(whole, total_counts(lines, len(known)), groups)
    if any("semantic" in line for line in lines):
        _add_semantic(whole, total_confusion(lines, len(known)), training_groups)
    annotation = instance_annotation(lines, examples)
    if any("matches" in line for line in lines):
        matches = [line["matches"] for line in lines]
        _add_instances(whole, cityscapes.average_precision(matches), training_groups)
    elif annotation is not None:
        detections = [each for line in lines for each in line["instances"]]
        _add_instances(whole, instance.average_precision(annotation, detections), training_groups)
    return whole


def _add_panoptic(whole: Scores, counts: PanopticCounts, groups: Mapping[str, Bool[np.ndarray, " K"]]) -> None:
    for suffix, members in groups.items():
        with contextlib.suppress(ValueError):  # no such class occurs
            average = panoptic.average(counts, members)
            whole.overall.update({f"{name}{suffix}": 100 * getattr(average, name) for name in ("pq", "sq", "rq")})
    for entry, values in zip(whole.classes, (100 * panoptic.quality(counts)).tolist(), strict=True):
        entry.update(zip(("pq", "sq", "rq"), values, strict=True))


def _add_semantic(
    whole: Scores, confusion: Int[np.ndarray, "K1 K1"], groups: Mapping[str, Bool[np.ndarray, " K"]]
) -> None:
    for suffix, members in {"": None, **groups}.items():
        scores = semantic.scores(confusion, members)._asdict()
        whole.overall.update({f"{name}{suffix}": 100 * value for name, value in scores.items()})
    for entry, values in zip(whole.classes, (100 * semantic.iou_and_accuracy(confusion)).tolist(), strict=True):
        entry.update(zip(("iou", "acc"), values, strict=True))


def _add_instances(
    whole: Scores, found: AveragePrecision | CityscapesPrecision, groups: Mapping[str, Bool[np.ndarray, " K"]]
) -> None:
    """AP of a group is the mean over its classes that are annotated."""
    whole.overall.update({name: 100 * value for name, value in found._asdict().items() if name != "per_class"})
    for suffix, members in groups.items():
        ids = [entry["id"] for entry, member in zip(whole.classes, members, strict=True) if member]
        values = [found.per_class[id] for id in ids if id in found.per_class]
        whole.overall[f"ap{suffix}"] = 100 * float(np.mean(values)) if values else float("nan")
    for entry in whole.classes:
        entry["ap"] = 100 * found.per_class.get(entry["id"], float("nan"))


def instance_annotation(lines: Sequence[Line], examples: Examples) -> dict[str, Any] | None:
    """Returns COCO annotations of the images that have lines.

    Returns None if instances were not evaluated, or were matched as Cityscapes does it.
    """
    # With Cityscapes' matches, "instances" are only the saved predictions.
    if not lines or "instances" not in lines[0] or "matches" in lines[0]:
        return None
    ids = {line["image_id"] for line in lines}
    if examples.instances is not None:
        kept = {key: [entry for entry in examples.instances[key] if entry[name] in ids]
                for key, name in (("images", "id"), ("annotations", "image_id"))}  # fmt: skip
        return {**examples.instances, **kept}
    things = [thing for line in lines for thing in line["things"]]
    return {
        "images": [{"id": line["image_id"], "height": line["size"][0], "width": line["size"][1]} for line in lines],
        "annotations": [{"id": id, **thing} for id, thing in enumerate(things, start=1)],
        "categories": [{"id": entry.id, "name": entry.name} for entry in examples.vocabulary.classes if entry.is_thing],
    }


def summarize_sweep(
    sweep: Sweep, lines: Sequence[Line], examples: Examples, seen: Bool[np.ndarray, " K"]
) -> list[dict[str, Any]]:
    """Computes each row's scores in percent, and returns them with its cells by column; NaN where no such class occurs.

    seen: whether each class occurs in the training vocabulary.
    """
    classes = len(examples.vocabulary.classes)
    chosen = {"pq": seen | True, "pq_seen": seen, "pq_unseen": ~seen}
    found = []
    for place, row in enumerate(sweep.rows):
        total = total_counts([{"panoptic": line["sweep"][place]} for line in lines], classes)
        quality = panoptic.quality(total)[:, 0]
        scores = {}
        for name in SCORES:
            occurring = quality[chosen[name] & ~np.isnan(quality)]
            scores[name] = float(100 * occurring.mean()) if len(occurring) else float("nan")
        found.append({**dict(zip(sweep.columns, row.cells, strict=True)), **scores})
    return found
