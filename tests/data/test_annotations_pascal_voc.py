"""Pascal VOC 20 and 21: against the official script's results, and by hand."""

import subprocess
import sys

import numpy as np
import pytest

from fcclip_jax.data.annotations.jobs import FOLDERS
from fcclip_jax.evaluation.examples import open_benchmark
from tests.data.annotating import annotate, golden, load, photo, refusal, save, save_palette, tree


def write(root, maps):
    """maps: by split and name."""
    voc = root / "VOCdevkit" / "VOC2012"
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, named in maps.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in named))
        for name, labels in named.items():
            photo(labels.shape, voc / "JPEGImages" / f"{name}.jpg")
            save_palette(labels, voc / "SegmentationClass" / f"{name}.png")
    return voc


@pytest.fixture
def official(tmp_path):
    section, arrays = golden("voc")
    write(
        tmp_path,
        {split: {name: arrays[f"voc_{name}_label"] for name in names} for split, names in section["names"].items()},
    )
    return tmp_path


def test_the_official_scripts_results(official):
    section, arrays = golden("voc")
    assert annotate("pascal_voc", official) == 0
    compared = 0
    for split, names in section["names"].items():
        for name in names:
            for kind in ("pascal20", "pascal21"):
                ours = load(official / "pascal_voc_d2" / f"annotations_{kind}" / FOLDERS[split] / f"{name}.png")
                assert ours.dtype == np.uint8
                np.testing.assert_array_equal(ours, arrays[f"voc_{name}_{kind}"])
                compared += 1
            image = official / "pascal_voc_d2" / "images" / FOLDERS[split] / f"{name}.jpg"
            assert image.read_bytes() == (official / f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg").read_bytes()
    assert compared == 6


def test_by_hand(tmp_path):
    write(tmp_path, {"val": {"2007_000001": np.array([[0, 1, 20], [255, 15, 0]], np.uint8)}})
    assert annotate("pascal_voc", tmp_path / "VOCdevkit", "val") == 0
    maps = tmp_path / "pascal_voc_d2"
    without = load(maps / "annotations_pascal20/validation/2007_000001.png")
    np.testing.assert_array_equal(without, [[255, 0, 19], [255, 14, 255]])
    whole = load(maps / "annotations_pascal21/validation/2007_000001.png")
    np.testing.assert_array_equal(whole, [[0, 1, 20], [255, 15, 0]])


def test_it_goes_on_where_it_stopped(official, capsys):
    assert annotate("pascal_voc", official) == 0
    before = tree(official)
    for path in sorted((official / "pascal_voc_d2").rglob("*.png"))[::2]:
        path.unlink()
    assert annotate("pascal_voc", official) == 0
    assert "this run wrote 3 of them in " in capsys.readouterr().out
    assert tree(official) == before


def test_it_is_read_only_when_it_is_finished(tmp_path, capsys):
    """Images are converted in their order, so a damaged source stops a preparation midway."""
    maps = {f"2007_{index:06}": np.full((20, 30), index % 21, np.uint8) for index in range(40)}
    last = write(tmp_path, {"val": maps}) / "SegmentationClass" / "2007_000039.png"
    whole = last.read_bytes()
    last.write_bytes(whole[:60])
    assert "cannot read" in refusal("pascal_voc", tmp_path, capsys, "val")
    there = len(list((tmp_path / "pascal_voc_d2" / "annotations_pascal20" / "validation").iterdir()))
    assert 0 < there < 40
    for name in ("pascal_voc_20", "pascal_voc_21"):
        with pytest.raises(ValueError, match=f"repeat fcclip annotate pascal_voc --root {tmp_path}$"):
            open_benchmark(name, tmp_path)
    last.write_bytes(whole)
    assert annotate("pascal_voc", tmp_path, "val") == 0
    assert len(open_benchmark("pascal_voc_20", tmp_path)) == 40


def test_one_at_a_time(official, capsys):
    """Two processes would delete each other's files; a killed process releases its lock."""
    program = (
        "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX);"
        " print('locked', flush=True); time.sleep(60)"
    )
    photos = official / "VOCdevkit" / "VOC2012" / "JPEGImages"
    first = subprocess.Popen([sys.executable, "-c", program, photos], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"locked\n"
    assert "another fcclip annotate is using" in refusal("pascal_voc", official, capsys, "val")
    first.kill()
    first.communicate()
    assert annotate("pascal_voc", official, "val") == 0


def test_bad_sources(official, capsys):
    voc = official / "VOCdevkit" / "VOC2012"
    annotation, names = voc / "SegmentationClass" / "2007_000033.png", voc / "ImageSets" / "Segmentation" / "val.txt"
    labels = load(annotation)
    for path, spoil, message in (
        (annotation, lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot read"),
        (annotation, lambda path: save(np.stack([labels] * 3, axis=-1), path), "not a map of 8-bit labels"),
        (annotation, lambda path: save(np.full_like(labels, 21), path), "has the label 21"),
        (annotation, lambda path: save(labels[:, 1:], path), "pixels, but its image"),
        (annotation, lambda path: path.unlink(), "does not exist"),
        (names, lambda path: path.write_text("2007_000033\n2007_000033\n"), "have the same name"),
        (names, lambda path: path.unlink(), "val.txt does not exist; unpack VOCtrainval_11-May-2012.tar"),
        (names, lambda path: path.write_text("\n"), "is empty or not text"),
        (names, lambda path: path.write_bytes(b"\xff\xfe"), "is empty or not text"),
    ):
        kept = path.read_bytes()
        spoil(path)
        error = refusal("pascal_voc", official, capsys, "val")
        assert message in error and (str(path) in error or "2007_000033.jpg" in error)
        assert not (official / "pascal_voc_d2").exists()
        path.write_bytes(kept)
    assert annotate("pascal_voc", official) == 0
