"""From one image's segmentation to a line of numbers, and from all lines to scores.

A line is what JSON can hold:

    index, image_id, size (height, width)
    panoptic     [class, true positives, false positives, false negatives, sum of IoU] of each class that occurs
    semantic     [annotated class, found class, pixels] of each pair that occurs
    instances    detections in COCO's result format
    matches      evaluators.cityscapes' instead, for Cityscapes
    things       the annotation's own things as COCO annotations, where there is no other instance annotation
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from pycocotools import mask as coco_mask

from fcclip_jax.conventions import IGNORE
from fcclip_jax.evaluation.benchmarks import Example, Examples
from fcclip_jax.evaluation.log import Line
from fcclip_jax.inference.export import instance_record
from fcclip_jax.inference.results import Result
from fcclip_jax.metrics import cityscapes, instance, panoptic, semantic
from fcclip_jax.metrics.panoptic import PanopticCounts, Truth
from fcclip_jax.text.vocabulary import Vocabulary


def image_line(index: int, examples: Examples, example: Example, result: Result) -> Line:
    """The line of one image; what the result does not hold is left out."""
    classes = len(examples.vocabulary.classes)
    image_id = examples.image_ids[index]
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
            detections = [cityscapes.Found(each.entry.id, each.score, each.mask) for each in found]
            line["matches"] = cityscapes.match(example.instance_ids, detections)
            return line
        line["instances"] = [instance_record(image_id, each) for each in found]
        if examples.instances is None and example.panoptic is not None:
            line["things"] = things_of(image_id, example.panoptic, examples.vocabulary)
    return line


def panoptic_rows(truth: Truth, result: Result, classes: int) -> list[list[int | float]]:
    """[class, true positives, false positives, false negatives, sum of IoU] of the classes that occur in an image."""
    found = np.asarray([segment.class_index for segment in result.panoptic.segments], np.int64)
    counts = panoptic.count(truth, result.panoptic.id_map, found, classes)
    rows = np.flatnonzero(counts.true_positives + counts.false_positives + counts.false_negatives)
    return [[int(row), *(array[row].item() for array in counts)] for row in rows]


def panoptic_counts(line: Line, classes: int) -> PanopticCounts:
    """What `image_line` counted in one image."""
    counts = PanopticCounts.zeros(classes)
    for row, *values in line["panoptic"]:
        for array, value in zip(counts, values, strict=True):
            array[row] = value
    return counts


def things_of(image_id: int | str, truth: Truth, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """An image's things as COCO's instance annotations have them, without ids."""
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
    """Summed in the lines' order, so that the sums of fractions are always the same."""
    each = (panoptic_counts(line, classes) for line in lines)
    return functools.reduce(PanopticCounts.plus, each, PanopticCounts.zeros(classes))


def total_confusion(lines: Sequence[Line], classes: int) -> Int[np.ndarray, "K1 K1"]:
    total = np.zeros((classes + 1, classes + 1), np.int64)
    for line in lines:
        pairs = np.asarray(line["semantic"], np.int64).reshape(-1, 3)
        total[pairs[:, 0], pairs[:, 1]] += pairs[:, 2]  # no pair is there twice
    return total


class Scores(NamedTuple):
    overall: dict[str, float]
    """In percent, by the names of `report.NAMES`; those without a class to average over are left out."""
    classes: list[dict[str, Any]]
    """The same for each class, NaN where it does not occur."""


def summarize(lines: Sequence[Line], examples: Examples, seen: Sequence[bool]) -> Scores:
    """From the lines of all images, in their order.

    seen: whether a class was there in training, as the model counts it.
    """
    vocabulary = examples.vocabulary
    things, known = np.asarray(vocabulary.thing_mask), np.asarray(seen)
    overall: dict[str, float] = {}
    classes: list[dict[str, Any]] = [
        {"id": entry.id, "name": entry.name, "thing": entry.is_thing, "seen": bool(known[index])}
        for index, entry in enumerate(vocabulary.classes)
    ]
    groups = (
        ("", np.ones_like(known)),
        ("_things", things),
        ("_stuff", ~things),
        ("_seen", known),
        ("_unseen", ~known),
    )
    if any("panoptic" in line for line in lines):
        counts = total_counts(lines, len(classes))
        for suffix, among in groups:
            with contextlib.suppress(ValueError):  # no such class occurs
                average = panoptic.average(counts, among)
                overall |= {f"{name}{suffix}": 100 * getattr(average, name) for name in ("pq", "sq", "rq")}
        for entry, (pq, sq, rq) in zip(classes, (100 * panoptic.quality(counts)).tolist(), strict=True):
            entry |= {"pq": pq, "sq": sq, "rq": rq}
    if any("semantic" in line for line in lines):
        confusion = total_confusion(lines, len(classes))
        whole = semantic.scores(confusion)
        overall |= {name: 100 * value for name, value in whole._asdict().items()}
        for suffix, among in groups[3:]:
            of_group = semantic.scores(confusion, among)._asdict()
            overall |= {f"{name}{suffix}": 100 * value for name, value in of_group.items()}
        for entry, (iou, acc) in zip(classes, (100 * semantic.iou_and_accuracy(confusion)).tolist(), strict=True):
            entry |= {"iou": iou, "acc": acc}
    found = None
    annotation = instance_annotation(lines, examples)
    if any("matches" in line for line in lines):
        found = cityscapes.average_precision([line["matches"] for line in lines])
    elif annotation is not None:
        found = instance.average_precision(annotation, [each for line in lines for each in line["instances"]])
    if found is not None:
        overall |= {name: 100 * value for name, value in found._asdict().items() if name != "per_class"}
        for suffix, among in groups[3:]:
            of_group = [found.per_class[entry["id"]] for entry, chosen in zip(classes, among, strict=True)
                        if chosen and entry["id"] in found.per_class]  # fmt: skip
            overall[f"ap{suffix}"] = 100 * float(np.mean(of_group)) if of_group else float("nan")
        for entry in classes:
            entry["ap"] = 100 * found.per_class.get(entry["id"], float("nan"))
    return Scores(overall, classes)


def instance_annotation(lines: Sequence[Line], examples: Examples) -> dict[str, Any] | None:
    """COCO annotations of the images that have lines; None where instances were not evaluated, or as Cityscapes does."""
    if not lines or "instances" not in lines[0] or "matches" in lines[0]:  # saved predictions are there all the same
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
