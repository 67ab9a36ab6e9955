"""The rules: when an array, a label map or a set of instances equals the official one."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from fcclip_jax.inference.postprocess import Instances, InstanceScores, Segments, unpack_mask

UNSURE = 1e-4
"""Pixels are ignored if their two best scores, or their mask probability and 0.5, differ by less than this: noise of
4e-6 of the largest mask logit changes them."""


class Verdict(NamedTuple):
    """One line of the report. `error` is relative to the largest official value; None where nothing is measured."""

    name: str
    shape: tuple[int, ...]
    ok: bool
    error: float | None
    found: str = ""


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x.astype(np.float64)))


def compare_array(name: str, official: np.ndarray, ours: np.ndarray, tolerance: float) -> Verdict:
    """Compares numbers by max|difference| / max|official|; whole numbers must be equal. Official NaNs are ignored."""
    if official.shape != ours.shape:
        return Verdict(name, official.shape, False, None, f"ours is {list(ours.shape)}")
    exact = not np.issubdtype(official.dtype, np.floating)
    official, ours = official.astype(np.float64), ours.astype(np.float64)
    counts = ~np.isnan(official)
    infinite = counts & ~np.isfinite(official)
    if not np.array_equal(official[infinite], ours[infinite]):
        return Verdict(name, official.shape, False, None, "infinite values differ")
    counts &= ~infinite
    note = "" if counts.all() else f"{np.isnan(official).mean():.2%} is official NaN"
    largest = np.abs(official[counts]).max(initial=0.0)
    error = float(np.abs(ours - official)[counts].max(initial=0.0) / (largest or 1.0))
    return Verdict(name, official.shape, error <= (0 if exact else tolerance), error, note)


def compare_log_probs(name: str, official: np.ndarray, class_probs: np.ndarray, tolerance: float) -> Verdict:
    """Compares log(p + 1e-8), void last, with our probabilities.

    A probability is a share of 1 - void, which the official code computes in float32. Where 1 - void is near zero and
    its last digit exceeds the tolerance, probabilities need only agree to that digit.
    """
    ours = np.log(class_probs)
    verdict = compare_array(name, official, ours, tolerance)
    if verdict.ok or official.shape != ours.shape:
        return verdict
    digit = np.finfo(np.float32).eps
    cancelled = digit / np.maximum(-np.expm1(official[:, -1]), digit) > tolerance * np.abs(official).max()
    close = np.abs(np.exp(official[cancelled]) - class_probs[cancelled]).max(initial=0) <= digit
    rest = np.where(cancelled[:, None], official, ours)
    verdict = compare_array(name, official, rest, tolerance)
    note = f"{cancelled.sum()} queries, all but surely void, to the last digit of 1 - void"
    return verdict._replace(ok=verdict.ok and bool(close), found=note)


def compare_labels(name: str, official: np.ndarray, ours: np.ndarray, unsure: np.ndarray) -> Verdict:
    """Compares labels, which must be equal wherever a pixel is not `unsure`."""
    if official.shape != ours.shape:
        return Verdict(name, official.shape, False, None, f"ours is {list(ours.shape)}")
    wrong = (official != ours) & ~unsure
    share = f"{unsure.mean():.3%} too near to call"
    if wrong.any():
        place = tuple(map(int, np.argwhere(wrong)[0]))
        theirs, own = official[place], ours[place]
        return Verdict(
            name, official.shape, False, None, f"{wrong.sum()} differ, {place} is {theirs}, ours {own}; {share}"
        )
    return Verdict(name, official.shape, True, None, f"equal; {share}")


def compare_panoptic(name: str, official: np.ndarray, ours: np.ndarray, unsure: np.ndarray) -> Verdict:
    """Compares as `compare_labels` does. Segments of unsure pixels alone are ignored too: ids after them may shift."""
    verdict = compare_labels(name, official, ours, unsure)
    if verdict.ok or official.shape != ours.shape:
        return verdict
    renumbered = compare_labels(name, *(_without_unsure(ids, unsure) for ids in (official, ours)), unsure)
    note = f"{renumbered.found}; ids but for segments of such pixels alone"
    return renumbered._replace(found=note) if renumbered.ok else verdict


def _without_unsure(ids: np.ndarray, unsure: np.ndarray) -> np.ndarray:
    return ids - np.searchsorted(_unsure_ids(ids, unsure), ids)


def _unsure_ids(ids: np.ndarray, unsure: np.ndarray) -> np.ndarray:
    """Returns the segments that consist of unsure pixels alone."""
    return np.setdiff1d(ids, [*ids[~unsure], 0])


def compare_segments(
    name: str,
    official: Sequence[Mapping[str, Any]],
    ours: Segments,
    official_ids: np.ndarray | None,
    our_ids: np.ndarray,
    unsure: np.ndarray,
) -> Verdict:
    """Compares the json's ids, classes and thing flags. Segments of unsure pixels alone are ignored if a map exists."""
    found = [(int(ours.class_ids[i]), bool(ours.is_thing[i])) for i in range(int(ours.number))]
    expected = [(row["category_id"], bool(row["isthing"])) for row in official]
    ok = [row["id"] for row in official] == list(range(1, len(official) + 1)) and expected == found
    if not ok and official_ids is not None and official_ids.shape == our_ids.shape:
        kept = (
            [row for i, row in enumerate(rows, start=1) if i not in _unsure_ids(ids, unsure)]
            for rows, ids in ((expected, official_ids), (found, our_ids))
        )
        ok = next(kept) == next(kept)
    return Verdict(name, (len(expected),), ok, None, "equal" if ok else f"(class, thing) {expected}, ours {found}")


def panoptic_unsure(full_logits: np.ndarray, class_probs: np.ndarray, object_mask_threshold: float) -> np.ndarray:
    """Returns the pixels whose two best score x mask probability, or whose winner's probability and 0.5, nearly tie."""
    margin, winner = panoptic_margin(full_logits, class_probs, object_mask_threshold)
    return (margin < UNSURE) | (np.abs(winner - 0.5) < UNSURE)


def panoptic_margin(
    full_logits: np.ndarray, class_probs: np.ndarray, object_mask_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns best minus second best score x mask probability, and the winner's probability; ones without queries."""
    scores = class_probs.max(1)
    kept = (class_probs.argmax(1) < class_probs.shape[1] - 1) & (scores > object_mask_threshold)
    if not kept.any():
        return np.ones(full_logits.shape[:2]), np.ones(full_logits.shape[:2])
    probs = sigmoid(full_logits[..., kept])
    weighted = probs * scores[kept]
    winner = np.take_along_axis(probs, weighted.argmax(-1)[..., None], -1)[..., 0]
    return best_margin(weighted), winner


def best_margin(scores: np.ndarray) -> np.ndarray:
    """Returns the best minus the second best along the last axis; the best alone if it is the only one."""
    if scores.shape[-1] == 1:
        return scores[..., 0]
    second, first = np.moveaxis(np.partition(scores, -2, axis=-1)[..., -2:], -1, 0)
    return first - second


def semantic_unsure(scores: np.ndarray) -> np.ndarray:
    """Returns the pixels whose two best classes nearly tie.

    A score is a sum over queries: it may exceed 1, and its noise grows with it.
    """
    return best_margin(scores.astype(np.float64)) < UNSURE * max(1.0, scores.max())


class InstanceSet(NamedTuple):
    """The recorded parts of the official instances."""

    scores: np.ndarray | None
    classes: np.ndarray | None
    masks: np.ndarray | None  # [N, H, W]


def compare_instances(
    name: str,
    official: InstanceSet,
    ours: Instances,
    mask_bits: np.ndarray,
    full_logits: np.ndarray,
    class_probs: np.ndarray,
    is_thing: np.ndarray,
    tolerance: float,
    scores: InstanceScores = "mask_probability",
) -> Verdict:
    """Compares multisets of instances.

    Each official instance needs one of ours with its class, score and mask, except for unsure pixels. Ours that tie at
    the cut to the best of all queries and classes may replace each other.
    """
    counts = {len(part) for part in official if part is not None}
    if len(counts) > 1:
        return Verdict(
            name, (max(counts),), False, None, f"official scores, classes and masks are {sorted(counts)} long"
        )
    (count,) = counts
    largest = 1.0 if official.scores is None else float(official.scores.max(initial=0.0)) or 1.0
    rows = _our_instances(ours, mask_bits, full_logits, class_probs, is_thing, scores)
    if official.masks is not None and official.masks.shape[1:] != full_logits.shape[:2]:
        return Verdict(name, official.masks.shape, False, None, f"ours is {list(full_logits.shape[:2])}")
    unsure = np.abs(sigmoid(full_logits) - 0.5) < UNSURE
    cost = np.full((count, len(rows)), 100.0)
    for i in range(count):
        for j, row in enumerate(rows):
            if official.classes is not None and official.classes[i] != row.label:
                continue
            gap = 0.0 if official.scores is None else abs(float(official.scores[i]) - row.score) / largest
            if gap > tolerance:
                continue
            if official.masks is not None:
                wrong = official.masks[i].astype(bool) != row.mask
                if np.any(wrong & ~unsure[..., row.query]):
                    continue
            cost[i, j] = gap + row.tied
    chosen = linear_sum_assignment(cost)
    pairs = [(i, j) for i, j in zip(*chosen, strict=True) if cost[i, j] < 100]
    left = sum(not row.tied for row in rows) - sum(not rows[j].tied for _, j in pairs)
    error = max((cost[i, j] - rows[j].tied for i, j in pairs), default=0.0)
    ok = len(pairs) == count and left == 0
    text = "equal" if ok else f"{count - len(pairs)} have no match, {left} of ours have none"
    return Verdict(name, (count,), ok, error if official.scores is not None else None, text)


class _Instance(NamedTuple):
    label: int
    query: int
    score: float
    tied: bool
    mask: np.ndarray


def _our_instances(
    ours: Instances,
    mask_bits: np.ndarray,
    full_logits: np.ndarray,
    class_probs: np.ndarray,
    is_thing: np.ndarray,
    scores: InstanceScores,
) -> list[_Instance]:
    """Returns the found instances, and those that missed the cut by less than the noise."""
    candidates, limit = class_probs[:, :-1], len(ours.scores)
    near = np.zeros(candidates.shape, bool)
    if candidates.size > limit:
        cut, next_best = -np.partition(-candidates.reshape(-1), [limit - 1, limit])[[limit - 1, limit]]
        if next_best >= cut * (1 - UNSURE):
            near = np.abs(candidates - cut) <= UNSURE * cut
    rows, found = [], set()
    for label, score, query, bits in zip(
        *(part[: int(ours.number)] for part in (*ours[1:4], mask_bits[ours.mask_rows])), strict=True
    ):
        tied, mask = bool(near[query, label]), unpack_mask(bits, full_logits.shape[:2])
        rows.append(_Instance(int(label), int(query), float(score), tied, mask))
        found.add((int(query), int(label)))
    for query, label in zip(*np.nonzero(near), strict=True):
        if is_thing[label] and (query, label) not in found:
            mask = full_logits[..., query] > 0
            values = full_logits[..., query] if scores == "mask_logit" else sigmoid(full_logits[..., query])
            inside = (values * mask).sum() / (mask.sum() + 1e-6)
            rows.append(_Instance(int(label), int(query), float(class_probs[query, label] * inside), True, mask))
    return rows
