"""Tests the classes that --classes and --stuff describe."""

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.commands.class_lists import read_classes
from fcclip_jax.text import vocabulary
from tests.commands.segmenting import fails, read_json


def names(vocabulary):
    return [entry.names for entry in vocabulary.classes]


def test_words(tmp_path):
    assert names(read_classes("cat, remote control")) == [("cat",), ("remote control",)]
    assert names(read_classes("cat|kitten, remote control,")) == [("cat", "kitten"), ("remote control",)]
    assert names(read_classes("city")) == [("city",)]
    assert names(read_classes("cityscapes,")) == [("cityscapes",)]
    assert names(read_classes("sword")) == [("sword",)]
    made = read_classes("cat|kitten, grass|lawn, sky", "sky, grass|lawn")
    assert made.thing_mask == (True, False, False)
    assert read_classes("coco_panoptic") == vocabulary.Vocabulary.load("coco_panoptic")
    assert len(read_classes("world").classes) == 283


def test_words_in_a_file(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffcat, kitten\r\n\r\ncrème brûlée\r\n".encode())
    assert names(read_classes(str(path))) == [("cat", "kitten"), ("crème brûlée",)]


@pytest.mark.parametrize(
    ("classes", "stuff", "message"),
    [
        ("", "", "--classes '' names no classes; give some"),
        (" , |,", "", "--classes ' , |,' names no classes"),
        ("cat,cat", "", "the class 'cat' is named 2 times"),
        ("coco_panotic", "", "did you mean coco_panoptic?"),
        ("ade20k", "", "did you mean ade20k_"),
        ("cityscape", "", "did you mean cityscapes?"),
        ("none.txt", "", "--classes names the file none.txt, which does not exist"),
        ("cat", "sky", "stuff 'sky' is not"),
        ("cityscapes", "sky", "--stuff applies to your own words only"),
    ],
)
def test_classes_that_make_no_sense(segment, fake, photos, tmp_path, capsys, classes, stuff, message):
    assert message in fails(capsys, segment(photos, "--stuff", stuff, classes=classes))
    assert not fake and not (tmp_path / "out").exists()


def test_a_file_that_is_no_text(segment, photos, tmp_path, capsys):
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00cat")
    assert "not a text file in UTF-8" in fails(capsys, segment(photos, classes=tmp_path / "classes.txt"))


def test_ten_thousand_classes(segment, photos, tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(f"thing number {i}" for i in range(10_000)))
    assert segment(photos, classes=tmp_path / "classes.txt") == 0
    with Image.open(tmp_path / "out/semantic/a.png") as png:
        assert np.asarray(png).max() == 9_999
    assert len(read_json(tmp_path / "out/panoptic.json")["categories"]) == 10_000
