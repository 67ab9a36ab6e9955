"""Cityscapes: against cityscapesScripts, and by hand."""

import json

import numpy as np
import pytest

from fcclip_jax.conventions import CITYSCAPES_LABELS
from fcclip_jax.data.annotations import cityscapes
from tests.data.annotating import annotate, load, load_ids, refusal, save

CITIES = {"train": ("aachen", "ulm"), "val": ("frankfurt",)}


def write(folder, name, ids):
    """Writes an image's maps like the archive: instance ids, and labels."""
    save(ids.astype(np.uint16), folder / f"{name}_gtFine_instanceIds.png")
    labels = np.where(ids >= 1000, ids // 1000, ids)
    return save(labels.astype(np.uint8), folder / f"{name}_gtFine_labelIds.png")


def scene(rng):
    """Draws stuff of every label, then boxes of instances and crowds of all things over it."""
    ids = rng.integers(0, 34, (6, 8)).repeat(9, axis=0).repeat(11, axis=1)
    for _ in range(25):
        top, left, height, width = rng.integers(1, 40, 4)
        label = rng.integers(24, 34)
        ids[top : top + height, left : left + width] = label if rng.random() < 0.2 else label * 1000 + rng.integers(300)
    return ids


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    for split, cities in CITIES.items():
        for city in cities:
            for number in range(3):
                write(tmp_path / "cityscapes/gtFine" / split / city, f"{city}_{number:06}_000019", scene(rng))
    return tmp_path


@pytest.fixture
def scripts():
    pytest.importorskip("cityscapesscripts", reason="cityscapesScripts is not installed (the extra 'eval')")


def test_what_cityscapes_scripts_make(dataset, scripts, tmp_path):
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    truth = dataset / "cityscapes" / "gtFine"
    convert2panoptic(str(truth), str(theirs), setNames=["train", "val"])
    assert annotate("cityscapes", dataset) == 0
    compared = 0
    for split in CITIES:
        name = f"cityscapes_panoptic_{split}"
        assert json.loads((truth / f"{name}.json").read_text()) == json.loads((theirs / f"{name}.json").read_text())
        for path in (theirs / name).iterdir():
            np.testing.assert_array_equal(load(truth / name / path.name), load(path))
            compared += 1
        assert len(list((truth / name).iterdir())) == len(list((theirs / name).iterdir()))
    assert compared == 9


def test_their_table_of_labels(scripts):
    from cityscapesscripts.helpers.labels import labels

    known = [label for label in labels if label.id >= 0]
    assert len(known) == CITYSCAPES_LABELS
    ours = cityscapes.train_ids(np.array([[label.id for label in known]]))
    assert ours.tolist() == [[label.trainId for label in known]]
    groups = {id: group for group, ids in cityscapes.GROUPS.items() for id in ids}
    assert groups == {label.id: label.category for label in known if label.category != "void"}


def test_training_ids_are_those_of_the_polygons(scripts, tmp_path):
    """Compares with the official maps of training ids, which are drawn from polygons like the archive's label ids."""
    from cityscapesscripts.helpers.labels import labels
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    rng = np.random.default_rng(1)
    folder = tmp_path / "gtFine" / "val" / "munster"
    folder.mkdir(parents=True)
    names = [label.name for label in labels] + ["cargroup", "persongroup"]  # the last label is not drawn: its id is -1
    objects = [
        {"label": names[index % len(names)], "polygon": rng.integers(0, 200, (5, 2)).tolist()} for index in range(80)
    ]
    stem = folder / "munster_000000_000019_gtFine"
    polygons = f"{stem}_polygons.json"
    with open(polygons, "w") as file:
        json.dump({"imgHeight": 160, "imgWidth": 200, "objects": objects}, file)
    for kind, encoding in (("labelIds", "ids"), ("expected", "trainIds")):
        json2labelImg(polygons, f"{stem}_{kind}.png", encoding)
    save(load(folder / f"{stem.name}_labelIds.png").astype(np.uint16), folder / f"{stem.name}_instanceIds.png")
    assert annotate("cityscapes", tmp_path, "val") == 0
    ours = load(folder / f"{stem.name}_labelTrainIds.png")
    assert ours.dtype == np.uint8 and len(np.unique(ours)) > 10
    np.testing.assert_array_equal(ours, load(folder / f"{stem.name}_expected.png"))


def test_by_hand(tmp_path):
    """Two cars and a crowd of them on a road; a caravan is not evaluated, nor are unlabelled pixels."""
    ids = np.array([[7, 26000, 26001, 26], [7, 7, 29000, 0]])
    write(tmp_path / "cityscapes/gtFine/val/ulm", "ulm_000000_000019", ids)
    assert annotate("cityscapes", tmp_path / "cityscapes", "val") == 0
    truth = tmp_path / "cityscapes" / "gtFine"
    drawn = load_ids(truth / "cityscapes_panoptic_val/ulm_000000_000019_gtFine_panoptic.png")
    np.testing.assert_array_equal(drawn, [[7, 26000, 26001, 26], [7, 7, 0, 0]])
    trained = load(truth / "val/ulm/ulm_000000_000019_gtFine_labelTrainIds.png")
    np.testing.assert_array_equal(trained, [[0, 13, 13, 13], [0, 0, 255, 255]])
    content = json.loads((truth / "cityscapes_panoptic_val.json").read_text())
    (annotation,) = content["annotations"]
    assert [(entry["id"], entry["category_id"], entry["iscrowd"]) for entry in annotation["segments_info"]] == [
        (7, 7, 0),
        (26, 26, 1),
        (26000, 26, 0),
        (26001, 26, 0),
    ]
    assert annotation["segments_info"][0]["area"] == 3 and annotation["segments_info"][0]["bbox"] == [0, 0, 2, 2]
    categories = [(entry["id"], entry["name"], entry["isthing"]) for entry in content["categories"]]
    assert categories[0] == (7, "road", 0) and categories[-1] == (33, "bicycle", 1) and len(categories) == 19


def test_bad_sources(dataset, capsys):
    assert "unpack gtFine_trainvaltest.zip" in refusal("cityscapes", dataset / "nowhere", capsys)
    folder = dataset / "cityscapes/gtFine/val/frankfurt"
    instances, labels = (folder / f"frankfurt_000001_000019_gtFine_{kind}.png" for kind in ("instanceIds", "labelIds"))
    ids, label_map = load(instances), load(labels)
    for path, spoil, message in (
        (labels, lambda path: path.unlink(), "does not exist"),
        (labels, lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot read"),
        (labels, lambda path: save(label_map + np.uint8(34), path), "has the label"),
        (labels, lambda path: save(label_map[1:], path), "pixels, but its image"),
        (instances, lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot read"),
        (
            instances,
            lambda path: save(np.full_like(ids, 34000), path),
            "has the id 34000, whose label 34 does not exist",
        ),
        (instances, lambda path: save(np.full_like(ids, 999), path), "has the id 999, whose label 999 does not exist"),
        (instances, lambda path: save(np.dstack([label_map] * 3), path), "is not a map of ids"),
    ):
        kept = path.read_bytes()
        spoil(path)
        error = refusal("cityscapes", dataset, capsys, "val")
        assert message in error and str(path) in error
        assert not list((dataset / "cityscapes/gtFine").glob("*.json"))
        path.write_bytes(kept)
    assert annotate("cityscapes", dataset) == 0
