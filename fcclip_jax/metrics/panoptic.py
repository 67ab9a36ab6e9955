"""Panoptic quality (Kirillov et al., 2019) as panopticapi computes it, from counts per class that add up over images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class PanopticCounts(NamedTuple):
    """Counts of some images, per class. Counts of different images add up, whichever process made them."""

    true_positives: Int[np.ndarray, " K"]
    false_positives: Int[np.ndarray, " K"]
    false_negatives: Int[np.ndarray, " K"]
    iou: Float[np.ndarray, " K"]
    """The sum of IoU over true positives."""

    @classmethod
    def zeros(cls, classes: int) -> "PanopticCounts":
        """Returns the counts of no image."""
        return cls(*(np.zeros(classes, np.int64) for _ in range(3)), np.zeros(classes))

    def plus(self, other: "PanopticCounts") -> "PanopticCounts":
        """Returns the counts of both sets of images."""
        return PanopticCounts(*map(np.add, self, other))


class Truth(NamedTuple):
    """One image's ground truth."""

    id_map: Int[np.ndarray, "H W"]
    """Segment ids; 0 is void."""
    ids: Int[np.ndarray, " N"]
    classes: Int[np.ndarray, " N"]
    """Class indices, from 0."""
    crowds: Bool[np.ndarray, " N"]
    areas: Int[np.ndarray, " N"] | None = None
    """Pixels from the json, which the official scores use even where the map differs. None counts the map's pixels."""


class Average(NamedTuple):
    """Means over the classes that occur in annotation or prediction; shares from 0 to 1."""

    pq: float
    sq: float
    rq: float
    classes: int
    """The number of these classes."""


def count(
    truth: Truth, found_map: Int[np.ndarray, "H W"], found_classes: Int[np.ndarray, " S"], classes: int
) -> PanopticCounts:
    """Compares one image's prediction with its annotation.

    found_map: 0 for void, s + 1 for segment s, whose class is found_classes[s]. A segment without pixels does not count.
    classes: the number of classes, K.

    Raises:
        ValueError: the maps differ in size, or a pixel's segment is not listed.
    """
    if truth.id_map.shape != found_map.shape:
        raise ValueError(f"the annotation is {truth.id_map.shape} pixels, but the prediction {found_map.shape}")
    segments, listed = len(truth.ids), len(found_classes)
    if found_map.size and not 0 <= found_map.min() <= found_map.max() <= listed:
        raise ValueError(
            f"the prediction's map has the id {found_map.max()}, but its segments have the ids 1 to {listed}"
        )
    # Rows: void and unlisted ids, then the annotation's segments. Columns: void, then the prediction's segments.
    order = np.argsort(truth.ids)
    places = np.searchsorted(truth.ids, truth.id_map, sorter=order)
    rows = order[np.minimum(places, segments - 1)] if segments else np.zeros(truth.id_map.shape, np.int64)
    known = (truth.ids[rows] == truth.id_map) & (truth.id_map != 0) if segments else np.zeros_like(rows, bool)
    rows = np.where(known, rows + 1, 0)
    size = (segments + 1) * (listed + 1)
    shared = np.bincount((rows * (listed + 1) + found_map).ravel(), minlength=size).reshape(segments + 1, listed + 1)
    # An id that is in the map but not in the json is not void: its pixels count in a prediction's union.
    void = np.bincount(found_map[truth.id_map == 0].ravel(), minlength=listed + 1)[1:]

    found_areas = np.bincount(found_map.ravel(), minlength=listed + 1)[1:]
    areas = shared[1:].sum(axis=1) if truth.areas is None else truth.areas
    overlap = shared[1:, 1:]
    union = areas[:, None] + found_areas[None] - overlap - void[None]
    real = ~truth.crowds[:, None] & (truth.classes[:, None] == found_classes[None]) & (overlap > 0)
    iou = np.divide(overlap, union, out=np.zeros(overlap.shape), where=real)
    matched = iou > 0.5

    missed = ~truth.crowds & ~matched.any(axis=1)
    # If a class has several crowds, panopticapi uses the last one.
    crowd_of = {int(c): i for i, c in enumerate(truth.classes) if truth.crowds[i]}
    excused = void + np.asarray(
        [overlap[crowd_of[int(c)], s] if int(c) in crowd_of else 0 for s, c in enumerate(found_classes)], np.int64
    )
    extra = ~matched.any(axis=0) & (found_areas > 0) & ~(excused > 0.5 * found_areas)

    of_pair = np.broadcast_to(truth.classes[:, None], matched.shape)[matched]
    return PanopticCounts(
        np.bincount(of_pair, minlength=classes),
        np.bincount(found_classes[extra], minlength=classes),
        np.bincount(truth.classes[missed], minlength=classes),
        np.bincount(of_pair, weights=iou[matched], minlength=classes),
    )


def quality(counts: PanopticCounts) -> Float[np.ndarray, "K 3"]:
    """Returns PQ, SQ and RQ of each class; NaN for classes that do not occur."""
    tp = counts.true_positives
    denominator = tp + 0.5 * counts.false_positives + 0.5 * counts.false_negatives
    occurs = denominator > 0
    rq = np.divide(tp, denominator, out=np.full(len(tp), np.nan), where=occurs)
    sq = np.divide(counts.iou, tp, out=np.where(occurs, 0.0, np.nan), where=tp > 0)
    pq = np.divide(counts.iou, denominator, out=np.full(len(tp), np.nan), where=occurs)
    return np.stack([pq, sq, rq], axis=1)


def average(counts: PanopticCounts, members: Sequence[bool] | Bool[np.ndarray, " K"]) -> Average:
    """Averages over a group of classes.

    members: whether each class is in the group.

    Raises:
        ValueError: no class of the group occurs.
    """
    rows = quality(counts)[np.asarray(members, bool)]
    rows = rows[~np.isnan(rows[:, 0])]
    if not len(rows):
        raise ValueError("no such class occurs in the annotation or in the prediction, so no quality can be averaged")
    return Average(*rows.mean(axis=0).tolist(), len(rows))
