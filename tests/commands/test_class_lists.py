"""Tests the classes that --classes and --stuff describe."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.commands.class_lists import read_classes
from fcclip_jax.text import vocabulary
from tests.commands.segmenting import FakeSegmenter, fails, read_json


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
    path.write_bytes("\ufeffcat|kitten\r\n\r\ncrème brûlée\r\n".encode())
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
        ("classes.yaml", "", "--classes names the file classes.yaml, which does not exist"),
        ("cat, dogs.csv", "", "the word 'dogs.csv', which looks like a file that does not exist"),
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


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize(
    ("classes", "printed", "warning"),
    [
        ("cat|kitten, dog; sofa", "3 classes: cat (kitten), dog, sofa (stuff)", None),
        (
            "cat dog sofa, sofa",
            "2 classes: cat dog sofa, sofa (stuff)",
            "'cat dog sofa' is one class; if these are 3 classes",
        ),
        ("sofa, \u732b", "2 classes: sofa (stuff), \u732b", None),
        ('["cat, kitten", "sofa"]', "2 classes: cat (kitten), sofa (stuff)", None),
    ],
)
def test_what_is_looked_for_is_printed(segment, photos, capsys, classes, printed, warning):
    assert segment(photos, "--stuff", "sofa", "--task", "semantic", classes=classes) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == printed
    warnings = [line for line in captured.err.splitlines() if "is one class" in line]
    assert [line.startswith(f"warning: {warning}") for line in warnings] == [True] * (warning is not None)


def test_names_that_the_terminal_cannot_write(segment, photos, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert segment(photos, "--task", "semantic", classes="caf\xe9, cat") == 0
    stream.flush()
    assert stream.buffer.getvalue().startswith(b"2 classes: caf\\xe9, cat\n")


def test_the_training_words_are_the_default(segment, fake, photos, capsys):
    assert segment(photos, classes=None) == 0
    assert fake[0].vocabulary == FakeSegmenter.training_vocabulary
    assert capsys.readouterr().out.startswith(
        "2 classes: cat (kitten), grass (stuff) (the checkpoint's training words, as there is no --classes)\n"
    )


@pytest.mark.parametrize(
    ("weights", "stuff", "message"),
    [
        ("random", "", "random weights were trained on no words; name the classes, as in --classes 'cat, dog'"),
        ("weights", "grass", "--stuff applies to your own words only; give these with --classes, or remove --stuff"),
    ],
)
def test_no_classes(segment, fake, photos, capsys, weights, stuff, message):
    assert fails(capsys, segment(photos, "--stuff", stuff, classes=None, weights=weights)) == f"error: {message}"
    assert not fake


def test_a_checkpoint_without_words(segment, photos, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(FakeSegmenter, "training_vocabulary", vocabulary.Vocabulary("none", ()))
    assert "this checkpoint was trained on no words; name" in fails(capsys, segment(photos, classes=None))
    assert not (tmp_path / "out").exists()
