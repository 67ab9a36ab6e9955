"""Cityscapes' scores against cityscapesScripts, which reads the files that its server accepts."""

import os

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as pixels
from cityscapesscripts.helpers.labels import id2label, trainId2label
from PIL import Image

from fcclip_jax.metrics import cityscapes, semantic
from fcclip_jax.metrics.cityscapes import IGNORED_LABELS, INSTANCE_LABELS, Detection

HW = (120, 200)


@pytest.fixture(autouse=True)
def older_numpy(monkeypatch):
    """Restores what cityscapesScripts 2.3 needs and NumPy 2.4 has removed, and keeps it from writing a json."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    monkeypatch.setattr(official, "writeDict2JSON", lambda content, path: None)


def made_up(rng: np.random.Generator) -> tuple[np.ndarray, list[Detection]]:
    """Makes a road with instances, a group of cars, a caravan and void; and detections near them, elsewhere, and of stuff."""
    ids = np.full(HW, 7, np.uint16)
    found = []
    for number in range(14):
        label = int(rng.choice([24, 25, 26, 26, 26, 33]))
        y, x, h, w = rng.integers(0, 90), rng.integers(0, 150), *rng.integers(4, 50, 2)
        id = {0: 26, 1: 29001, 2: 4}.get(number, 1000 * label + number)
        ids[y : y + h, x : x + w] = id
    for id in np.unique(ids).tolist():
        if id != 7 and rng.random() < 0.8:
            mask = np.roll(ids == id, rng.integers(-3, 4, 2), (0, 1))
            label = id // 1000 if id >= 1000 else 26
            for _ in range(rng.integers(1, 3)):
                found.append(Detection(label if label in INSTANCE_LABELS else 26, float(rng.random()), mask))
    noise = np.zeros(HW, bool)
    noise[5:40, 5:60] = True
    return ids, [*found, Detection(24, 0.7, noise), Detection(7, 0.9, noise), Detection(25, 0.5, np.zeros(HW, bool))]


def test_labels():
    assert set(INSTANCE_LABELS) == {
        id for id, label in id2label.items() if label.hasInstances and not label.ignoreInEval
    }
    assert set(IGNORED_LABELS) == {id for id, label in id2label.items() if label.ignoreInEval and id >= 0}


@pytest.mark.parametrize("seed", range(3))
def test_average_precision(seed, tmp_path):
    rng = np.random.default_rng(seed)
    truths, predictions, matches = [], [], []
    for index in range(4):
        ids, found = made_up(rng)
        truths.append(str(tmp_path / f"a_{index:06}_000000_gtFine_instanceIds.png"))
        Image.fromarray(ids).save(truths[-1])
        lines = []
        for number, (label, score, mask) in enumerate(found):
            file = f"a_{index:06}_000000_{number}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / file)
            lines.append(f"{file} {label} {score!r}\n")
        predictions.append(str(tmp_path / f"a_{index:06}_000000_pred.txt"))
        with open(predictions[-1], "w") as file:
            file.writelines(lines)
        matches.append(cityscapes.match(ids, found))
    arguments = official.CArgs()
    vars(arguments).update(vars(official.args))
    arguments.quiet, arguments.JSONOutput, arguments.predictionPath = True, False, os.path.abspath(tmp_path)
    arguments.gtInstancesFile = str(tmp_path / "instances.json")
    wanted = official.evaluateImgLists(predictions, truths, arguments)["averages"]
    measured = cityscapes.average_precision(matches)
    assert 0.05 < measured.ap < 0.9
    assert measured.ap == pytest.approx(wanted["allAp"], rel=1e-12)
    assert measured.ap50 == pytest.approx(wanted["allAp50%"], rel=1e-12)
    for label, value in measured.per_class.items():
        assert value == pytest.approx(wanted["classes"][id2label[label].name]["ap"], rel=1e-12, nan_ok=True)


def test_iou(tmp_path):
    """mIoU over training ids equals mIoU over label ids, since both leave out the same classes."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 34, HW).astype(np.uint8)
    classes = np.asarray([id2label[label].trainId for label in range(34)]).astype(np.uint8)[truth]
    found = np.where(rng.random(HW) < 0.6, np.minimum(classes, 18), rng.integers(0, 19, HW)).astype(np.uint8)
    Image.fromarray(truth).save(tmp_path / "a_0_0_gtFine_labelIds.png")
    as_labels = np.asarray([trainId2label[index].id for index in range(19)], np.uint8)[found]
    Image.fromarray(as_labels).save(tmp_path / "a_0_0_pred.png")
    arguments = pixels.CArgs()
    vars(arguments).update(vars(pixels.args))
    arguments.quiet, arguments.JSONOutput, arguments.evalInstLevelScore = True, False, False
    arguments.evalPixelAccuracy = False
    wanted = pixels.evaluateImgLists(
        [str(tmp_path / "a_0_0_pred.png")], [str(tmp_path / "a_0_0_gtFine_labelIds.png")], arguments
    )
    confusion = semantic.count(classes, found, 19, 255)
    assert semantic.scores(confusion).miou == pytest.approx(wanted["averageScoreClasses"], rel=1e-12)


def test_nothing_is_annotated():
    match = cityscapes.match(np.full(HW, 7, np.uint16), [])
    assert np.isnan(cityscapes.average_precision([match])[:2]).all()
