"""Average precision as Cityscapes defines it: this module matches masks, cityscapesScripts computes the scores.

The matching of cityscapesScripts reads each mask from a file, passes over the image once for each pair of masks, and calls
functions that NumPy has removed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from fcclip_jax.command_line import import_package
from fcclip_jax.conventions import CITYSCAPES_LABELS
from fcclip_jax.text.vocabulary import Vocabulary

_CLASSES = Vocabulary.load("cityscapes").classes
INSTANCE_LABELS = tuple(entry.id for entry in _CLASSES if entry.is_thing)
IGNORED_LABELS = tuple(sorted(set(range(CITYSCAPES_LABELS)) - {entry.id for entry in _CLASSES}))


class Detection(NamedTuple):
    """One predicted instance."""

    label_id: int
    """Cityscapes' label id, from 0 to 33."""
    score: float
    mask: Bool[np.ndarray, "H W"]


class CityscapesPrecision(NamedTuple):
    """Shares from 0 to 1; NaN where nothing is annotated."""

    ap: float
    """The mean over the IoU thresholds 0.5, 0.55 ... 0.95 and the classes."""
    ap50: float
    per_class: Mapping[int, float]
    """`ap` of each class with instances, by label id."""


def match(instance_ids: Integer[np.ndarray, "H W"], detections: Sequence[Detection]) -> dict[str, Any]:
    """Counts the pixels that one image's detections share with its *_instanceIds.png.

    instance_ids: label id x 1000 + number, or a label id alone for groups and classes without instances.

    Returns:
        Values that JSON can represent:
        "annotated": [instance id, pixels] of each instance or group of the classes with instances.
        "found": [label id, score, pixels, ignored pixels, [[row of "annotated", shared pixels], ...]] of each detection.
    """
    pixels = np.bincount(instance_ids.ravel())
    ids = np.flatnonzero(pixels)
    rows = np.zeros(len(pixels), np.int32)
    rows[ids] = np.arange(len(ids), dtype=np.int32)
    columns = rows[instance_ids.T]  # column by column, as masks lie in memory
    void = np.isin(ids, IGNORED_LABELS)
    labels = np.where(ids < 1000, ids, ids // 1000)
    kept = np.flatnonzero(np.isin(labels, INSTANCE_LABELS))
    found = []
    for label_id, score, mask in detections:
        shared = np.bincount(columns[mask.T], minlength=len(ids))
        if label_id not in INSTANCE_LABELS or not shared.any():
            continue
        pairs = [[place, int(shared[row])] for place, row in enumerate(kept) if labels[row] == label_id and shared[row]]
        found.append([label_id, score, int(shared.sum()), int(shared[void].sum()), pairs])
    return {"annotated": [[int(ids[row]), int(pixels[ids[row]])] for row in kept], "found": found}


def average_precision(matches: Sequence[Mapping[str, Any]]) -> CityscapesPrecision:
    """Computes AP over images with cityscapesScripts.

    matches: what `match` returned for each image.

    Raises:
        ValueError: cityscapesScripts is not installed.
    """
    import_package("cityscapesscripts", "Cityscapes' AP")
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official
    from cityscapesscripts.helpers.labels import id2label

    names = {label_id: id2label[label_id].name for label_id in INSTANCE_LABELS}
    settings = official.CArgs()
    vars(settings).update(vars(official.args))
    settings.instLabels, settings.distanceAvailable = list(names.values()), False
    images = {str(index): _official_matches(each, names) for index, each in enumerate(matches)}
    precisions = official.evaluateMatches(images, settings)
    if np.isnan(precisions).all():
        return CityscapesPrecision(float("nan"), float("nan"), dict.fromkeys(names, float("nan")))
    averages = official.computeAverages(precisions, settings)
    per_class = {label_id: float(averages["classes"][name]["ap"]) for label_id, name in names.items()}
    return CityscapesPrecision(float(averages["allAp"]), float(averages["allAp50%"]), per_class)


def _official_matches(match: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """Returns what assignGt2Preds returns for an image, as far as evaluateMatches reads it."""
    annotated = [
        {"instID": id, "labelID": id if id < 1000 else id // 1000, "pixelCount": pixels, "medDist": -1, "distConf": 0.0}
        for id, pixels in match["annotated"]
    ]
    truth: dict[str, list] = {name: [] for name in names.values()}
    predictions: dict[str, list] = {name: [] for name in names.values()}
    matched: list[list] = [[] for _ in annotated]
    for label_id, score, pixels, void, pairs in match["found"]:
        head = {"labelID": label_id, "confidence": score, "pixelCount": pixels, "voidIntersection": void}
        for row, shared in pairs:
            matched[row].append({**head, "intersection": shared})
        of_truth = [{**annotated[row], "intersection": shared} for row, shared in pairs]
        predictions[names[label_id]].append({**head, "matchedGt": of_truth})
    for entry, found in zip(annotated, matched, strict=True):
        truth[names[entry["labelID"]]].append({**entry, "matchedPred": found})
    return {"groundTruth": truth, "prediction": predictions}
