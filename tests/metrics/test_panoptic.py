"""Panoptic quality: by hand, against a literal implementation of the definition, and against panopticapi's scores."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.metrics.panoptic import PanopticCounts, Truth, average, count, quality
from tests.metrics import perturbed


def truth(id_map, segments, areas=None) -> Truth:
    """segments: (id, class, crowd)."""
    ids, classes, crowds = np.asarray(segments, np.int64).reshape(-1, 3).T
    return Truth(np.asarray(id_map), ids, classes, crowds.astype(bool), areas)


def test_by_hand():
    annotated = truth(
        [
            [7, 7, 7, 7],
            [7, 7, 9, 9],
            [5, 5, 9, 9],
            [0, 0, 9, 9],
        ],
        [(7, 0, False), (9, 1, False), (5, 0, False)],
    )
    found = np.asarray(
        [
            [1, 1, 1, 1],
            [1, 2, 2, 2],
            [0, 2, 2, 2],
            [3, 3, 2, 2],
        ]
    )
    counts = count(annotated, found, np.asarray([0, 1, 0]), 2)
    # Segment 1 has 5 of the 6 pixels of 7; segment 2 has all 6 of 9 and two more. 5 is missed. 3 lies on void: no error.
    assert counts.true_positives.tolist() == [1, 1]
    assert counts.false_negatives.tolist() == [1, 0]
    assert counts.false_positives.tolist() == [0, 0]
    np.testing.assert_allclose(counts.iou, [5 / 6, 6 / 8], rtol=1e-15)
    np.testing.assert_allclose(quality(counts), [[5 / 6 / 1.5, 5 / 6, 1 / 1.5], [0.75, 0.75, 1]], rtol=1e-15)
    assert average(counts, [True, True]).pq == pytest.approx((5 / 9 + 0.75) / 2, rel=1e-15)
    assert average(counts, [False, True]).classes == 1


def test_an_area_from_the_json_is_what_counts():
    annotated = truth([[4, 4, 4, 0]], [(4, 0, False)], np.asarray([5]))
    counts = count(annotated, np.asarray([[1, 1, 1, 0]]), np.asarray([0]), 1)
    assert counts.iou.tolist() == [3 / 5]


def test_mistakes_are_named():
    annotated = truth([[4]], [(4, 0, False)])
    with pytest.raises(ValueError, match=r"\(1, 1\) pixels, but the prediction \(1, 2\)"):
        count(annotated, np.asarray([[1, 1]]), np.asarray([0]), 1)
    with pytest.raises(ValueError, match="has the id 2, but its segments have the ids 1 to 1"):
        count(annotated, np.asarray([[2]]), np.asarray([0]), 1)
    with pytest.raises(ValueError, match="no such class occurs"):
        average(PanopticCounts.zeros(3), [True] * 3)


def literal(annotated: Truth, found: np.ndarray, found_classes: np.ndarray, classes: int) -> PanopticCounts:
    """Counts as the definition does, with sets of pixels."""
    counts = PanopticCounts.zeros(classes)
    pixels = {(i, j) for i in range(found.shape[0]) for j in range(found.shape[1])}
    void = {p for p in pixels if annotated.id_map[p] == 0}
    hit_truth, hit_found = set(), set()
    masks = [{p for p in pixels if annotated.id_map[p] == id} for id in annotated.ids]
    guesses = [{p for p in pixels if found[p] == s + 1} for s in range(len(found_classes))]
    for t, mask in enumerate(masks):
        for s, guess in enumerate(guesses):
            if annotated.crowds[t] or annotated.classes[t] != found_classes[s] or not mask & guess:
                continue
            area = len(mask) if annotated.areas is None else annotated.areas[t]
            iou = len(mask & guess) / (area + len(guess) - len(mask & guess) - len(void & guess))
            if iou > 0.5:
                hit_truth.add(t)
                hit_found.add(s)
                counts.true_positives[annotated.classes[t]] += 1
                counts.iou[annotated.classes[t]] += iou
    for t in range(len(masks)):
        if t not in hit_truth and not annotated.crowds[t]:
            counts.false_negatives[annotated.classes[t]] += 1
    for s, guess in enumerate(guesses):
        if s in hit_found or not guess:
            continue
        crowds = [t for t in range(len(masks)) if annotated.crowds[t] and annotated.classes[t] == found_classes[s]]
        excused = len(void & guess) + (len(masks[crowds[-1]] & guess) if crowds else 0)
        if excused / len(guess) <= 0.5:
            counts.false_positives[found_classes[s]] += 1
    return counts


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_as_the_definition_says(seed):
    rng = np.random.default_rng(seed)
    segments, listed, classes = rng.integers(1, 6), rng.integers(0, 6), 3
    ids = rng.choice(np.arange(1, 40), segments, replace=False)
    id_map = rng.choice(np.append(ids, [0, 50]), (5, 6))  # 50 is not in the json
    id_map = np.where(rng.random((5, 6)) < 0.6, ids[0], id_map)
    annotated = Truth(
        id_map,
        ids,
        rng.integers(0, classes, segments),
        rng.random(segments) < 0.3,
        rng.integers(1, 20, segments) if rng.random() < 0.3 else None,
    )
    # The prediction is like the annotation, so that some segments match.
    place = {int(id): s for s, id in enumerate(ids)}
    like = np.vectorize(lambda id: min(place.get(int(id), -1) + 1, listed))(id_map)
    found = np.where(rng.random((5, 6)) < 0.8, like, rng.integers(0, listed + 1, (5, 6)))
    found_classes = np.where(
        rng.random(listed) < 0.8, np.resize(annotated.classes, listed), rng.integers(0, classes, listed)
    )
    ours = count(annotated, found, found_classes.astype(np.int64), classes)
    for mine, theirs in zip(ours, literal(annotated, found, found_classes, classes), strict=True):
        # Sums of the same few fractions, in another order.
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_the_official_figures(shared):
    facts = json.loads((shared / "golden/extra/pq.json").read_text())
    arrays = np.load(shared / "golden/extra/pq.npz")
    categories = {entry["id"]: i for i, entry in enumerate(facts["categories"])}
    things = np.asarray([bool(entry["isthing"]) for entry in facts["categories"]])
    total = PanopticCounts.zeros(len(categories))

    def check(counts: PanopticCounts, expected: dict) -> None:
        for name, members in (("All", things | True), ("Things", things), ("Stuff", ~things)):
            if expected[name] is None:
                with pytest.raises(ValueError, match="no such class occurs"):
                    average(counts, members)
                continue
            ours = average(counts, members)
            assert ours.classes == expected[name]["n"]
            # Both are float64; panopticapi adds up in another order.
            for part in ("pq", "sq", "rq"):
                assert getattr(ours, part) == pytest.approx(expected[name][part], abs=1e-9)

    for i, case in enumerate(facts["cases"]):
        annotated = truth(
            arrays[f"gt_{i:03}"],
            [(s["id"], categories[s["category_id"]], s["iscrowd"]) for s in case["gt_segments_info"]],
            np.asarray([s["area"] for s in case["gt_segments_info"]], np.int64),
        )
        ids = [s["id"] for s in case["pred_segments_info"]]
        found = np.zeros_like(arrays[f"pred_{i:03}"])
        for s, id in enumerate(ids):
            found[arrays[f"pred_{i:03}"] == id] = s + 1
        classes = np.asarray([categories[s["category_id"]] for s in case["pred_segments_info"]], np.int64)
        counts = count(annotated, found, classes, len(categories))
        for id, expected in case["per_category"].items():
            row = [column[categories[int(id)]] for column in counts]
            np.testing.assert_allclose(row, [expected[k] for k in ("tp", "fp", "fn", "iou")], atol=1e-9)
        if "summary" in case:
            check(counts, case["summary"])
        total = total.plus(counts)
    assert len(facts["cases"]) > 40
    check(total, facts["expected_whole_set"])


def test_an_independent_implementation_says_the_same():
    rng = np.random.default_rng(0)
    things = np.arange(6) < 3
    cases = []
    for _ in range(30):
        coarse = rng.integers(0, 9, (4, 5))
        id_map = np.kron(coarse, np.ones((12, 12), int)) * 100
        ids = np.arange(100, 900, 100)
        areas = np.asarray([(id_map == id).sum() for id in ids]) + 3  # the json's count, even where the map differs
        annotated = Truth(id_map, ids, rng.integers(0, 6, len(ids)), np.zeros(len(ids), bool), areas)
        cases.append(perturbed.perturb(rng, annotated, things))
    mine, theirs = perturbed.ours(cases, things), perturbed.independent(cases, things)
    assert 0.02 < mine["pq", "All"] < 0.9
    assert mine == pytest.approx(theirs, rel=1e-12)
