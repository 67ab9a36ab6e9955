"""Average precision against pycocotools reading files, as its documentation shows."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fcclip_jax.metrics.instance import average_precision


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def made_up(seed, images=4, categories=(3, 7, 20)):
    """Makes boxes of all sizes; and detections that are shifted, and some of another class."""
    rng = np.random.default_rng(seed)
    annotation = {"images": [], "annotations": [], "categories": [{"id": c, "name": str(c)} for c in (*categories, 99)]}
    detections = []
    for image in range(images):
        annotation["images"].append({"id": image, "height": 150, "width": 200})
        for _ in range(12):
            mask = np.zeros((150, 200), bool)
            y, x, h, w = rng.integers(0, 90), rng.integers(0, 110), *rng.integers(5, 110, 2)
            mask[y : y + h, x : x + w] = True
            category = int(rng.choice(categories))
            annotation["annotations"].append(
                {"id": len(annotation["annotations"]) + 1, "image_id": image, "category_id": category,
                 "iscrowd": int(rng.random() < 0.1), "area": int(mask.sum()), "bbox": [int(x), int(y), int(w), int(h)],
                 "segmentation": rle(mask)}
            )  # fmt: skip
            for _ in range(rng.integers(0, 3)):
                shifted = np.roll(mask, rng.integers(-6, 7, 2), (0, 1))
                detections.append(
                    {"image_id": image, "category_id": category if rng.random() < 0.8 else 7, "segmentation": rle(shifted),
                     "score": float(np.round(rng.random(), 2))}
                )  # fmt: skip
    return annotation, detections


@pytest.mark.parametrize("seed", range(3))
def test_pycocotools_says_the_same(seed, tmp_path):
    annotation, detections = made_up(seed)
    (tmp_path / "truth.json").write_text(json.dumps({"info": {}, **annotation}))
    (tmp_path / "found.json").write_text(json.dumps(detections))
    truth = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    measured = average_precision(annotation, detections)
    assert measured[:6] == tuple(evaluation.stats[:6])
    assert 0.05 < measured.ap < 0.9
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    assert measured.per_class == {c: precision[:, :, k].mean() for k, c in enumerate((3, 7, 20))}
    assert measured.ap == pytest.approx(np.mean([*measured.per_class.values()]), rel=1e-12)


def test_what_has_no_value(capfd):
    annotation, detections = made_up(0)
    for entry in annotation["annotations"]:
        entry["area"] = 5000
    measured = average_precision(annotation, detections)
    assert np.isnan([measured.ap_small, measured.ap_large]).all() and measured.ap_medium > 0
    assert np.isnan(average_precision(annotation, [])[:6]).all()
    assert capfd.readouterr() == ("", "")


def test_the_official_figures(shared):
    content = json.loads((shared / "golden" / "extra" / "ap.json").read_text())
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    for case in content["cases"]:
        found = average_precision(content["gt"], case["detections"])
        if case["expected"] is None:  # detectron2 reports NaN
            assert np.isnan(found[:6]).all()
            continue
        wanted = np.asarray([case["expected"]["detectron2_percent"][name] for name in names], np.float64)
        np.testing.assert_allclose(100 * np.asarray(found[:6]), wanted, rtol=0, atol=1e-9, err_msg=case["name"])
        for category, row in case["expected"]["per_category_percent"].items():
            assert 100 * found.per_class[int(category)] == pytest.approx(row["AP"], abs=1e-9)
