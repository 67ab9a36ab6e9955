"""ADE20K-150: against the official scripts' results, and by hand; and the behaviour that all datasets share."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath
from pycocotools import mask as coco_mask

from fcclip_jax import cli
from fcclip_jax.data.annotations.jobs import FOLDERS
from fcclip_jax.data.datasets import open_dataset
from fcclip_jax.text.vocabulary import Vocabulary
from tests.data.annotating import annotate, golden, load, load_ids, photo, refusal, save, tree


def write(root, folder, name, semantic, instance, own="ADEChallengeData2016"):
    photo(semantic.shape, root / own / "images" / folder / f"{name}.jpg")
    save(semantic, root / own / "annotations" / folder / f"{name}.png")
    save(instance, root / own / "annotations_instance" / folder / f"{name}.png")


def instance_map(classes, numbers):
    return np.stack([classes, numbers, np.zeros_like(numbers)], axis=-1).astype(np.uint8)


def relabelled(ids, segments):
    """Returns each pixel's place in the list of segments, and -1 for void."""
    places = {segment["id"]: place for place, segment in enumerate(segments)}
    return np.vectorize(lambda id: places[id] if id else -1)(ids)


def without(entry, *keys):
    return {key: value for key, value in entry.items() if key not in keys}


@pytest.fixture
def official(tmp_path):
    section, arrays = golden("ade")
    for file in section["files"]:
        maps = (arrays[f"ade_{file['name']}_annotation{kind}"] for kind in ("", "_instance"))
        write(tmp_path, file["split"], file["name"], *maps)
    return tmp_path


def test_the_official_scripts_results(official):
    section, arrays = golden("ade")
    assert annotate("ade20k", official) == 0
    root = official / "ADEChallengeData2016"
    compared = 0
    for split, folder in FOLDERS.items():
        ours = json.loads((root / f"ade20k_panoptic_{split}.json").read_text())
        theirs = section["outputs"][f"ade20k_panoptic_{split}.json"]
        assert list(ours) == list(theirs) and ours["images"] == theirs["images"]
        categories = zip(ours["categories"], theirs["categories"], strict=True)
        assert all(one.keys() == other.keys() for one, other in categories)
        assert all(
            (one["id"], one["isthing"]) == (other["id"], other["isthing"])
            for one, other in zip(ours["categories"], theirs["categories"], strict=True)
        )
        for one, other in zip(ours["annotations"], theirs["annotations"], strict=True):
            name = one["image_id"]
            assert without(one, "segments_info") == without(other, "segments_info")
            segments = one["segments_info"], other["segments_info"]
            assert [without(entry, "id") for entry in segments[0]] == [without(entry, "id") for entry in segments[1]]
            assert len({entry["id"] for entry in segments[0]} | {0}) == len(segments[0]) + 1
            np.testing.assert_array_equal(
                relabelled(load_ids(root / f"ade20k_panoptic_{split}" / f"{name}.png"), segments[0]),
                relabelled(arrays[f"ade_{name}_panoptic_id"], segments[1]),
            )
            shifted = load(root / "annotations_detectron2" / folder / f"{name}.png")
            assert shifted.dtype == np.uint8
            np.testing.assert_array_equal(shifted, arrays[f"ade_{name}_sem_detectron2"])
            compared += 1
        ours = json.loads((root / f"ade20k_instance_{split}.json").read_text())
        theirs = section["outputs"][f"ade20k_instance_{split}.json"]
        assert list(ours) == list(theirs) and ours["images"] == theirs["images"]
        assert ours["annotations"] == theirs["annotations"]
        assert [entry["id"] for entry in ours["categories"]] == [entry["id"] for entry in theirs["categories"]]
    assert compared == 5
    assert section["thing_ids"] == [entry.id for entry in Vocabulary.load("ade20k_150").classes if entry.is_thing]


# pycocotools' decoder has no NumPy 2 copy argument.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_by_hand(tmp_path):
    """Two beds (class 7, the first thing) cover a wall (class 0) in part, and one of them hides a sky (2)."""
    semantic = np.array([[1, 1, 3], [1, 1, 0], [8, 8, 0]], np.uint8)
    numbers = np.array([[0, 0, 2], [1, 1, 0], [1, 1, 0]])
    write(tmp_path, "validation", "ADE_val_00000001", semantic, instance_map((numbers > 0) * 1, numbers))
    assert annotate("ade20k", tmp_path / "ADEChallengeData2016", "val") == 0  # the dataset's own folder works too
    root = tmp_path / "ADEChallengeData2016"
    (annotation,) = json.loads((root / "ade20k_panoptic_val.json").read_text())["annotations"]
    wall, sky, first, second = annotation["segments_info"]
    assert [wall["category_id"], sky["category_id"], first["category_id"], second["category_id"]] == [0, 2, 7, 7]
    assert [wall["area"], sky["area"], first["area"], second["area"]] == [4, 1, 4, 1]
    assert wall["bbox"] == [0, 0, 2, 2] and first["bbox"] == [0, 1, 2, 2] and second["bbox"] == [2, 0, 1, 1]
    drawn = [[wall["id"], wall["id"], second["id"]], [first["id"], first["id"], 0], [first["id"], first["id"], 0]]
    np.testing.assert_array_equal(load_ids(root / "ade20k_panoptic_val" / "ADE_val_00000001.png"), drawn)
    shifted = [[0, 0, 2], [0, 0, 255], [7, 7, 255]]
    np.testing.assert_array_equal(load(root / "annotations_detectron2/validation/ADE_val_00000001.png"), shifted)
    instances = json.loads((root / "ade20k_instance_val.json").read_text())["annotations"]
    np.testing.assert_array_equal(coco_mask.decode(instances[0]["segmentation"]), numbers == 1)
    assert [entry["id"] for entry in instances] == [1, 2]
    dataset = open_dataset("ade20k_panoptic", tmp_path, "val")
    assert dataset[0].segments[:, 1].tolist() == [0, 2, 7, 7]


def test_only_what_is_missing_is_written(official, capsys):
    assert annotate("ade20k", official) == 0
    assert "train: 3 of the official 20210 images\n" in capsys.readouterr().out
    root = official / "ADEChallengeData2016"
    before, times = tree(official), {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert annotate("ade20k", official) == 0
    assert "All files are complete; this run wrote 0 of them in " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times
    # A map that another program wrote, with other ids, is replaced when the json is made.
    (root / "ade20k_panoptic_val.json").unlink()
    map_path = root / "ade20k_panoptic_val" / "ADE_val_00000001.png"
    save(load(map_path) ^ 1, map_path)
    (root / "ade20k_panoptic_val" / "ADE_val_00000002.png").write_bytes(b"damaged")
    (root / "ade20k_panoptic_train" / "ADE_train_00000001.png").unlink()
    assert annotate("ade20k", official) == 0
    assert tree(official) == before


def test_killed_half_way(tmp_path):
    """Uses SIGKILL, after which no clean-up code runs."""
    for root in (tmp_path / "killed", tmp_path / "whole"):
        for index in range(60):
            semantic = np.full((300, 400), index, np.uint8)
            numbers = np.arange(300 * 400).reshape(300, 400) // 2000
            write(root, "validation", f"ADE_val_{index:08}", semantic, instance_map(numbers % 100 + 1, numbers))
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "fcclip_jax.cli", "annotate", "ade20k", "--splits", "val", "--root", str(killed)]
    results = killed / "ADEChallengeData2016" / "ade20k_panoptic_val"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (results.is_dir() and len(list(results.glob("*.png"))) >= 5):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
    done = [load(path) for path in results.glob("*.png")]  # each is whole
    assert 5 <= len(done) < 60 and not list(killed.rglob("*.json"))
    assert annotate("ade20k", killed, "val") == annotate("ade20k", tmp_path / "whole", "val") == 0
    assert tree(killed) == tree(tmp_path / "whole")
    assert not list(killed.rglob("*.partial"))


def test_nothing_half_written_is_left(official, monkeypatch, capsys):
    before = tree(official)

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(type(epath.Path(official)), "write_bytes", full)
    assert "No space left on device" in refusal("ade20k", official, capsys)
    assert tree(official) == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "annotations_instance/validation/ADE_val_00000002.png").unlink(), "; unpack ADEChall"),
        (
            lambda root: (root / "annotations/training/ADE_train_00000002.png").unlink(),
            "ADE_train_00000002.png does not exist; unpack",
        ),
        (lambda root: (root / "images").rename(root / "photos"), "images/training does not exist; unpack"),
        (lambda root: [path.unlink() for path in root.glob("images/*/*.jpg")], "images/training has no *.jpg; unpack"),
    ],
)
def test_missing_sources_are_told_before_anything_is_written(official, capsys, spoil, message):
    spoil(official / "ADEChallengeData2016")
    before = tree(official)
    assert message in refusal("ade20k", official, capsys)
    assert tree(official) == before


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def test_damaged_sources(official, capsys):
    root = official / "ADEChallengeData2016"
    semantic, instance, image = (
        root / folder / "validation" / f"ADE_val_00000001.{suffix}"
        for folder, suffix in (("annotations", "png"), ("annotations_instance", "png"), ("images", "jpg"))
    )
    kept = {path: path.read_bytes() for path in (semantic, instance, image)}
    labels, things = load(semantic), load(instance)
    ones = np.ones_like(labels)
    for path, spoil, message in (
        (semantic, truncate, "cannot read"),
        (instance, truncate, "cannot read"),
        (semantic, lambda path: path.write_bytes(b"no image"), "it is not an image in a known format; unpack it again"),
        (image, lambda path: path.write_bytes(b"no image"), "it is not an image in a known format; unpack it again"),
        (semantic, lambda path: save(labels[1:], path), "pixels, but its image"),
        (semantic, lambda path: save(np.full_like(labels, 151), path), "has the label 151"),
        (semantic, lambda path: save(things, path), "not a map of 8-bit labels"),
        (instance, lambda path: save(labels, path), "is not an RGB image"),
        (
            instance,
            lambda path: save(instance_map(ones + 100, ones), path),
            "has the class 101, which is not from 1 to 100",
        ),
        (instance, lambda path: save(instance_map(ones.cumsum(axis=1) % 9 + 1, ones), path), "has 9 classes"),
    ):
        spoil(path)
        error = refusal("ade20k", official, capsys, "val")
        assert message in error and str(path) in error
        assert not (root / "ade20k_panoptic_val.json").exists()
        path.write_bytes(kept[path])
    assert annotate("ade20k", official, "val") == 0


def test_bad_commands(tmp_path, capsys):
    assert "nowhere/images/training does not exist" in refusal("ade20k", tmp_path / "nowhere", capsys)
    for arguments in (["annotate", "ade20k", "--root", "x", "--splits", "test"], ["annotate", "coco", "--root", "x"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2 and "invalid choice" in capsys.readouterr().err
