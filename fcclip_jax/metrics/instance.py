"""Average precision as COCO defines it, by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


class AveragePrecision(NamedTuple):
    """Shares from 0 to 1; NaN where no such instance is annotated."""

    ap: float
    """The mean over the IoU thresholds 0.5, 0.55 ... 0.95 and the classes."""
    ap50: float
    ap75: float
    ap_small: float
    """AP of instances of up to 32 x 32 pixels; medium ones have up to 96 x 96."""
    ap_medium: float
    ap_large: float
    per_class: Mapping[int, float]
    """`ap` of each annotated class, by category id."""


def average_precision(annotation: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> AveragePrecision:
    """Computes the AP of masks. Without detections every score is NaN, as detectron2 reports it.

    annotation: images, annotations and categories in COCO's instance format.
    detections: image_id, category_id, segmentation (RLE) and score of each, COCO's result format.
    """
    if not detections:
        return AveragePrecision(*[float("nan")] * 6, {})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = {"info": {}, **annotation}
        truth.createIndex()
        found = COCO()
        # loadRes fails on an empty list, and guesses the kind of all entries from the first.
        found.dataset = {**truth.dataset, "annotations": [_detection(i, d) for i, d in enumerate(detections, start=1)]}
        found.createIndex()
        evaluation = COCOeval(truth, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = [float(value) if value > -1 else float("nan") for value in evaluation.stats[:6]]
    # [IoU threshold, recall, category, area, most detections]: all areas, at most 100 detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for column, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, column]
        values = values[values > -1]
        if values.size:
            per_class[category] = float(np.mean(values))
    return AveragePrecision(*stats, per_class)


def _detection(id: int, detection: Mapping[str, Any]) -> dict[str, Any]:
    area = int(coco_mask.area(detection["segmentation"]))
    return {"id": id, "iscrowd": 0, "area": area, **detection}
