"""Semantic scores as detectron2's SemSegEvaluator computes them, from pixel counts that add up over images."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer


class SemanticScores(NamedTuple):
    """Shares from 0 to 1; NaN where no class is annotated."""

    miou: float
    """The mean IoU over the annotated classes."""
    fwiou: float
    """The same mean, weighted by the classes' annotated pixels; 0 where no class is annotated."""
    macc: float
    """The mean over the annotated classes of the share of their pixels that are right."""
    pacc: float
    """The share of all annotated pixels that are right."""


def count(
    truth: Integer[np.ndarray, "H W"], found: Integer[np.ndarray, "h w"], classes: int, ignore: int
) -> Integer[np.ndarray, "K1 K1"]:
    """Counts one image's pixels by [annotated class, found class]; the last row and column are for ignored pixels.

    classes: the number of classes, K.
    ignore: the annotation's value for ignored pixels.

    Raises:
        ValueError: the maps differ in size, or a class is out of range.
    """
    if truth.shape != found.shape:
        raise ValueError(f"the annotation is {truth.shape} pixels, but the prediction {found.shape}")
    ignored = truth == ignore
    pairs = np.where(ignored, 0, truth).astype(np.int32)
    if pairs.size and not (0 <= pairs.min() <= pairs.max() < classes):
        raise ValueError(f"the annotation has the class {pairs.max()}, but classes are from 0 to {classes - 1}")
    if found.size and not (0 <= found.min() <= found.max() < classes):
        raise ValueError(f"the prediction has the class {found.max()}, but classes are from 0 to {classes - 1}")
    pairs[ignored] = classes
    pairs *= classes + 1
    pairs += found.astype(np.int32)
    return np.bincount(pairs.ravel(), minlength=(classes + 1) ** 2).reshape(classes + 1, classes + 1)


def iou_and_accuracy(confusion: Integer[np.ndarray, "K1 K1"]) -> Float[np.ndarray, "K 2"]:
    """Returns IoU and accuracy of each class; NaN for classes that are not annotated, even if they were found."""
    right, annotated, found = _sums(confusion)
    occurs = annotated > 0
    accuracy = np.divide(right, annotated, out=np.full(len(right), np.nan), where=occurs)
    iou = np.divide(right, annotated + found - right, out=np.full(len(right), np.nan), where=occurs)
    return np.stack([iou, accuracy], axis=1)


def scores(confusion: Integer[np.ndarray, "K1 K1"], members: Bool[np.ndarray, " K"] | None = None) -> SemanticScores:
    """Computes the scores of a group of classes.

    members: whether each class is in the group; None takes all.
    """
    right, annotated, _ = _sums(confusion)
    chosen = (annotated > 0) & (True if members is None else members)
    if not chosen.any():
        return SemanticScores(np.nan, 0.0, np.nan, np.nan)  # detectron2's sum over no class is 0, its mean NaN
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
    """Returns each class's right, annotated and found pixels."""
    counted = confusion[:-1].astype(np.float64)  # without ignored pixels
    return np.diagonal(counted).copy(), counted.sum(axis=1), counted[:, :-1].sum(axis=0)
