"""Semantic scores: by hand, against a loop over pixels, and against detectron2's scores."""

import json

import numpy as np
import pytest

from fcclip_jax.metrics import semantic

IGNORE = 255


def literally(truth, found, classes, ignore):
    """Returns mIoU, fwIoU, mACC and pACC; and IoU and accuracy of each class, counted pixel by pixel."""
    right, annotated, predicted = ([0] * classes for _ in range(3))
    for t, f in zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True):
        if t == ignore:
            continue
        annotated[t] += 1
        predicted[f] += 1
        right[t] += t == f
    occurring = [c for c in range(classes) if annotated[c]]
    iou = {c: right[c] / (annotated[c] + predicted[c] - right[c]) for c in occurring}
    accuracy = {c: right[c] / annotated[c] for c in occurring}
    pixels = sum(annotated)
    overall = (
        sum(iou.values()) / len(occurring),
        sum(iou[c] * annotated[c] for c in occurring) / pixels,
        sum(accuracy.values()) / len(occurring),
        sum(right) / pixels,
    )
    nan = float("nan")
    return overall, [(iou.get(c, nan), accuracy.get(c, nan)) for c in range(classes)]


def test_by_hand():
    truth = np.array([[0, 0, 1, 1], [0, 0, 2, 255]])
    found = np.array([[0, 1, 1, 1], [0, 0, 1, 3]])
    confusion = semantic.count(truth, found, 4, IGNORE)
    np.testing.assert_array_equal(
        confusion, [[3, 1, 0, 0, 0], [0, 2, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    )
    np.testing.assert_allclose(
        semantic.iou_and_accuracy(confusion), [(3 / 4, 3 / 4), (2 / 4, 1), (0, 0), (np.nan, np.nan)], rtol=1e-12
    )
    assert semantic.scores(confusion) == pytest.approx((1.25 / 3, (3 + 1 + 0) / 7, 1.75 / 3, 5 / 7), rel=1e-12)
    seen = np.array([True, False, False, True])
    assert semantic.scores(confusion, seen) == pytest.approx((0.75, 0.75, 0.75, 0.75), rel=1e-12)


@pytest.mark.parametrize("classes, dtype, ignore", [(7, np.uint8, 255), (133, np.int32, 255), (300, np.uint16, 65535)])
def test_against_a_loop_over_pixels(classes, dtype, ignore):
    rng = np.random.default_rng(classes)
    maps = []
    for _ in range(3):
        truth = rng.integers(0, classes // 2, (37, 53))  # the other half is found, but not annotated
        found = np.where(rng.random(truth.shape) < 0.4, truth, rng.integers(0, classes, truth.shape))
        maps.append((np.where(rng.random(truth.shape) < 0.1, ignore, truth).astype(dtype), found.astype(np.int32)))
    confusion = sum(semantic.count(truth, found, classes, ignore) for truth, found in maps)
    truth, found = (np.stack(each) for each in zip(*maps, strict=True))
    overall, of_classes = literally(truth, found, classes, ignore)
    assert semantic.scores(confusion) == pytest.approx(overall, rel=1e-12)
    np.testing.assert_allclose(semantic.iou_and_accuracy(confusion), of_classes, rtol=1e-12)


def test_nothing_is_annotated():
    confusion = semantic.count(np.full((4, 5), IGNORE), np.zeros((4, 5), np.int64), 3, IGNORE)
    np.testing.assert_equal(tuple(semantic.scores(confusion)), (np.nan, 0.0, np.nan, np.nan))


@pytest.mark.parametrize(
    "truth, found, message",
    [
        (np.zeros((4, 5), int), np.zeros((5, 4), int), r"\(4, 5\) pixels, but the prediction \(5, 4\)"),
        (np.full((2, 2), 3), np.zeros((2, 2), int), "the annotation has the class 3, but classes are from 0 to 2"),
        (np.zeros((2, 2), int), np.full((2, 2), 3), "the prediction has the class 3, but classes are from 0 to 2"),
    ],
)
def test_refusals(truth, found, message):
    with pytest.raises(ValueError, match=message):
        semantic.count(truth, found, 3, IGNORE)


def test_the_official_figures(shared):
    folder = shared / "golden" / "extra"
    arrays = np.load(folder / "miou.npz")
    for number, case in enumerate(json.loads((folder / "miou.json").read_text())["cases"]):
        classes, ignore = case["num_classes"], case["ignore_label"]
        confusion = sum(
            semantic.count(arrays[f"case{number}_gt{i}"], arrays[f"case{number}_pred{i}"], classes, ignore)
            for i in range(case["n_images"])
        )
        found = dict(zip(("mIoU", "fwIoU", "mACC", "pACC"), semantic.scores(confusion), strict=True))
        found["IoU"], found["ACC"] = semantic.iou_and_accuracy(confusion).T
        for key, value in found.items():
            wanted = np.asarray(case["expected"][key], np.float64)  # "nan" is a float, too
            np.testing.assert_allclose(100 * value, wanted, rtol=0, atol=1e-9, err_msg=f"{case['name']} {key}")
