"""Semantic segmentation as detectron2's SemSegEvaluator scores it: pixels by annotated and found class, which add up."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer


class SemanticScores(NamedTuple):
    """Shares from 0 to 1; NaN where no class occurs."""

    miou: float
    """The mean over the classes that occur in the annotation."""
    fwiou: float
    """The same, weighted by the classes' pixels."""
    macc: float
    pacc: float
    """The share of all annotated pixels that are right."""


def count(
    truth: Integer[np.ndarray, "H W"], found: Integer[np.ndarray, "h w"], classes: int, ignore: int
) -> Integer[np.ndarray, "K1 K1"]:
    """Pixels of each pair, [annotated, found], among K1 = classes + 1; the last row and column are for what is ignored.

    Raises:
        ValueError: the maps are of different sizes, or have a class that there is not.
    """
    if truth.shape != found.shape:
        raise ValueError(f"the annotation is {truth.shape} pixels and the prediction {found.shape}")
    ignored = truth == ignore
    pairs = np.where(ignored, 0, truth).astype(np.int32)
    if pairs.size and not (0 <= pairs.min() <= pairs.max() < classes):
        raise ValueError(f"the annotation has the class {pairs.max()} of {classes}, counted from 0")
    if found.size and not (0 <= found.min() <= found.max() < classes):
        raise ValueError(f"the prediction has the class {found.max()} of {classes}, counted from 0")
    pairs[ignored] = classes
    pairs *= classes + 1
    pairs += found.astype(np.int32)
    return np.bincount(pairs.ravel(), minlength=(classes + 1) ** 2).reshape(classes + 1, classes + 1)


def iou_and_accuracy(confusion: Integer[np.ndarray, "K1 K1"]) -> Float[np.ndarray, "K 2"]:
    """IoU and accuracy of each class; NaN for those absent from the annotation, even if they were found."""
    right, annotated, found = _sums(confusion)
    occurs = annotated > 0
    accuracy = np.divide(right, annotated, out=np.full(len(right), np.nan), where=occurs)
    iou = np.divide(right, annotated + found - right, out=np.full(len(right), np.nan), where=occurs)
    return np.stack([iou, accuracy], axis=1)


def scores(confusion: Integer[np.ndarray, "K1 K1"], among: Bool[np.ndarray, " K"] | None = None) -> SemanticScores:
    """Over all classes, or those for which `among` holds."""
    right, annotated, _ = _sums(confusion)
    chosen = (annotated > 0) & (True if among is None else among)
    if not chosen.any():
        return SemanticScores(np.nan, 0.0, np.nan, np.nan)  # a sum over nothing is officially 0, a mean is not
    iou, accuracy = iou_and_accuracy(confusion)[chosen].T
    weights = annotated[chosen] / annotated[chosen].sum()
    return SemanticScores(
        float(iou.mean()),
        float((iou * weights).sum()),
        float(accuracy.mean()),
        float(right[chosen].sum() / annotated[chosen].sum()),
    )


def _sums(
    confusion: Integer[np.ndarray, "K1 K1"],
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    counted = confusion[:-1].astype(np.float64)  # pixels whose annotation is ignored do not count
    return np.diagonal(counted).copy(), counted.sum(axis=1), counted[:, :-1].sum(axis=0)
