"""The command line, mostly in front of a segmenter that computes nothing; once with the real one."""

import errno
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from fcclip_jax import caching, cli, conventions
from fcclip_jax.data.images import load_image, resized_shape
from fcclip_jax.inference import buckets, segmenter
from fcclip_jax.text import vocabulary
from tests.inference.fake_results import fake_result


class FakeSegmenter:
    """Reads photographs as the real one does, then sees the same in all of them."""

    def __init__(self, weights, *, interrupt_at, **options):
        self.weights, self.interrupt_at, self.options = weights, interrupt_at, options

    def set_classes(self, classes):
        self.vocabulary = classes

    def stream(self, images, **options):
        self.options |= options
        for index, image in enumerate(images):
            if index == self.interrupt_at:
                raise KeyboardInterrupt
            try:
                pixels = load_image(image)
                if self.options["buckets"] is not None:
                    small = resized_shape(*pixels.shape[:2], self.options["short_side"], self.options["max_side"])
                    buckets.choose_bucket(small, self.options["buckets"])
            except (ValueError, OSError) as error:
                yield index, error
            else:
                yield index, fake_result(pixels.shape[:2], self.vocabulary)


class Made(list):
    interrupt_at = None
    """The photograph before which the segmenters to come are interrupted."""


@pytest.fixture
def fake(monkeypatch):
    """The segmenters that were made, in the order they were."""
    made = Made()

    def make(weights, **options):
        made.append(FakeSegmenter(weights, interrupt_at=made.interrupt_at, **options))
        return made[-1]

    monkeypatch.setattr(segmenter.Segmenter, "load", make)
    monkeypatch.setattr(segmenter.Segmenter, "random", lambda **options: make("random", **options))
    return made


def write_photo(path, shape=(48, 64), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """a.jpg and b.png, of different sizes."""
    folder = tmp_path / "photos"
    write_photo(folder / "a.jpg")
    write_photo(folder / "b.png", (60, 40))
    return folder


@pytest.fixture
def segment(tmp_path, fake):
    """Runs `fcclip segment` on these photographs: exit code."""

    def run(*arguments, classes="cat, sofa", output=tmp_path / "out", weights="weights"):
        words = [str(argument) for argument in arguments]
        return cli.main(
            ["segment", *words, "--classes", str(classes), "--weights", str(weights), "--output", str(output)]
        )

    return run


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def fails(capsys, code, *, skipped=0):
    """Asserts exit code 2 and that one sentence is all there is on stderr, beside a line for each skipped photograph."""
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 + skipped, lines
    assert lines[-1].startswith("error: ")
    return lines[-1]


ALL = [
    "images.json",
    "instances.json",
    "overlays/a.instances.jpg",
    "overlays/a.panoptic.jpg",
    "overlays/a.semantic.jpg",
    "overlays/b.instances.jpg",
    "overlays/b.panoptic.jpg",
    "overlays/b.semantic.jpg",
    "panoptic.json",
    "panoptic/a.png",
    "panoptic/b.png",
    "semantic/a.png",
    "semantic/b.png",
]


def test_all_is_written(segment, fake, photos, tmp_path, capsys):
    assert segment(photos) == 0
    assert files_in(tmp_path / "out") == ALL
    assert [image["width"] for image in read_json(tmp_path / "out/panoptic.json")["images"]] == [64, 40]
    # Of the two cats in each photograph, the default threshold 0.5 leaves one.
    assert [record["score"] for record in read_json(tmp_path / "out/instances.json")] == [0.875, 0.875]
    assert "2 segmented, 0 skipped" in capsys.readouterr().out
    (made,) = fake
    assert made.weights == "weights"
    assert made.options == {
        "short_side": 800,
        "max_side": 1333,
        "buckets": None,
        "batch_size": 1,
        "tasks": cli.TASKS,
        "overlap_threshold": 0.8,
    }


def test_options_reach_the_segmenter(segment, fake, photos, tmp_path):
    options = "--task instances,panoptic --threshold 0.25 --overlap-threshold 0.1 --short-side 64 --max-side 96"
    options += " --buckets 64x96,96x64 --batch-size 4 --stuff sofa"
    assert segment(photos, *options.split()) == 0
    (made,) = fake
    assert made.options == {
        "short_side": 64,
        "max_side": 96,
        "buckets": ((64, 96), (96, 64)),
        "batch_size": 4,
        "tasks": ("panoptic", "instances"),
        "overlap_threshold": 0.1,
    }
    assert made.vocabulary.thing_mask == (True, False)
    assert files_in(tmp_path / "out") == [name for name in ALL if "semantic" not in name]
    assert len(read_json(tmp_path / "out/instances.json")) == 4


def test_random_weights_are_called_random(segment, photos, capsys):
    assert segment(photos, weights="random") == 0
    assert "weights are random" in capsys.readouterr().err


def test_a_second_run_replaces_its_own_files_only(segment, photos, tmp_path):
    assert segment(photos) == 0
    out = tmp_path / "out"
    (out / "notes.txt").write_text("mine")
    (out / "panoptic/b.png").write_bytes(b"from another run")
    assert segment(photos / "a.jpg") == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "panoptic/b.png").read_bytes() == b"from another run"
    assert len(read_json(out / "images.json")["images"]) == 1


# Finding photographs.


def test_files_folders_and_patterns_each_once(tmp_path):
    for name in ("a.jpg", "sub/b.PNG", "sub/deep/c.webp", ".hidden/d.jpg", "._a.jpg", "out/overlays/a.jpg", "[x].jpg"):
        write_photo(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photograph")

    def found(*given):
        paths = cli.find_photos([str(tmp_path / name) for name in given], besides=tmp_path / "out")
        return [path.relative_to(tmp_path).as_posix() for path in paths]

    assert found("") == ["[x].jpg", "a.jpg", "sub/b.PNG", "sub/deep/c.webp"]
    assert found("a.jpg", "", "sub/../a.jpg") == ["a.jpg", "[x].jpg", "sub/b.PNG", "sub/deep/c.webp"]
    assert found("*.jpg") == ["[x].jpg", "a.jpg"]
    assert found("**/*.webp") == ["sub/deep/c.webp"]
    assert found("[x].jpg") == ["[x].jpg"]
    assert found("sub/*") == ["sub/b.PNG"]
    assert found("notes.txt") == ["notes.txt"], "what is named outright is tried"


@pytest.mark.parametrize("output", ["out", ".", ".."])
def test_its_own_pictures_are_not_photographs(segment, photos, output):
    """Whether the results go below, among or above the photographs."""
    for _ in range(2):
        assert segment(photos, output=photos / output) == 0
        assert len(read_json(photos / output / "images.json")["images"]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jpg", "there is no photograph or folder at .*missing.jpg"),
        ("empty", "there are no images in .*empty"),
        ("photos/*.bmp", r"there are no images in .*photos/\*\.bmp"),
    ],
)
def test_photographs_that_are_not_there(segment, fake, photos, tmp_path, capsys, name, message):
    (tmp_path / "empty").mkdir()
    assert re.search(message, fails(capsys, segment(photos / "a.jpg", tmp_path / name)))
    assert not fake and not (tmp_path / "out").exists()


# Photographs that cannot be read.


def damage(folder):
    (folder / "text.jpg").write_text("this is no photograph")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    (folder / "truncated.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def test_bad_photographs_are_skipped_and_the_rest_done(segment, photos, tmp_path, capsys):
    damage(photos)
    assert segment(photos) == 1
    captured = capsys.readouterr()
    first, second = captured.err.strip().splitlines()
    assert first.startswith("skipped cannot read") and "text.jpg" in first and "not an image" in first
    assert second.startswith("skipped cannot read") and "truncated.jpg" in second
    assert "2 segmented, 2 skipped" in captured.out
    assert files_in(tmp_path / "out") == ALL


def test_nothing_readable(segment, tmp_path, capsys):
    damage(tmp_path)
    error = fails(capsys, segment(tmp_path / "text.jpg", tmp_path / "truncated.jpg"), skipped=2)
    assert error == "error: nothing could be segmented"
    assert not (tmp_path / "out").exists()


def test_photographs_larger_than_all_buckets_are_skipped(segment, photos, capsys):
    """a.jpg lies, b.png stands."""
    assert segment(photos, "--short-side", 64, "--max-side", 96, "--buckets", "64x96") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "b.png" in line and "96x64 fits none of the buckets 64x96" in line


# Classes.


def names(vocabulary):
    return [entry.names for entry in vocabulary.classes]


def test_words(tmp_path):
    assert names(cli.read_classes("cat, remote control")) == [("cat",), ("remote control",)]
    assert names(cli.read_classes("cat|kitten, remote control,")) == [("cat", "kitten"), ("remote control",)]
    assert names(cli.read_classes("city")) == [("city",)]
    assert names(cli.read_classes("cityscapes,")) == [("cityscapes",)]
    made = cli.read_classes("cat|kitten, grass|lawn, sky", "sky, grass|lawn")
    assert made.thing_mask == (True, False, False)
    assert cli.read_classes("coco_panoptic") == vocabulary.Vocabulary.load("coco_panoptic")


def test_words_in_a_file(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffcat, kitten\r\n\r\ncrème brûlée\r\n".encode())
    assert names(cli.read_classes(str(path))) == [("cat", "kitten"), ("crème brûlée",)]


@pytest.mark.parametrize(
    ("classes", "stuff", "message"),
    [
        ("", "", "there are no classes"),
        (" , |,", "", "there are no classes"),
        ("cat,cat", "", "the class 'cat' is named 2 times"),
        ("coco_panotic", "", "did you mean coco_panoptic?"),
        ("ade20k", "", "did you mean ade20k_"),
        ("cityscape", "", "did you mean cityscapes?"),
        ("none.txt", "", "there is no file of classes at none.txt"),
        ("cat", "sky", "stuff 'sky' is not"),
        ("cityscapes", "sky", "--stuff goes with words of your own"),
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


# Other arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--buckets", "800"], "bucket '800' is not HEIGHTxWIDTH"),
        (["--buckets", "800x1088,100x200"], "bucket 100x200 is not made of multiples of 32; try 128x224"),
        (["--short-side", "2000"], "--short-side 2000 is more than --max-side 1333"),
    ],
)
def test_sizes_that_make_no_sense(segment, fake, photos, tmp_path, capsys, arguments, message):
    assert message in fails(capsys, segment(photos, *arguments))
    assert not fake and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "panotic"], "there is no task 'panotic' (did you mean panoptic?)"),
        (["--threshold", "1.5"], "'1.5' is not a number from 0 to 1"),
        (["--threshold", "nan"], "'nan' is not a number from 0 to 1"),
        (["--overlap-threshold", "half"], "'half' is not a number from 0 to 1"),
        (["--batch-size", "0"], "'0' is not a whole number from 1"),
        (["--short-side", "1.5"], "'1.5' is not a whole number from 1"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_arguments_that_cannot_be_parsed(segment, fake, photos, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        segment(photos, *arguments)
    assert message in fails(capsys, stop.value.code)
    assert not fake


def test_tasks():
    assert cli.TASKS == conventions.TASKS
    assert cli._tasks("all") == conventions.TASKS
    assert cli._tasks("semantic, panoptic") == ("panoptic", "semantic")


def test_output_that_is_a_file(segment, fake, photos, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert "taken is a file; --output needs a folder" in fails(capsys, segment(photos, output=tmp_path / "taken/out"))
    assert not fake


def test_a_checkpoint_that_is_not_there(photos, tmp_path, capsys):
    arguments = ["--classes", "cat", "--weights", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    assert "none" in fails(capsys, cli.main(["segment", str(photos), *arguments]))
    assert not (tmp_path / "out").exists()


# Stops on the way.


def test_a_full_disk(segment, photos, tmp_path, capsys, monkeypatch):
    def full_disk(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", full_disk)
    error = fails(capsys, segment(photos))
    assert error.startswith("error: cannot write ") and error.endswith("a.png: No space left on device")
    assert files_in(tmp_path / "out") == []


def test_too_little_memory(segment, photos, capsys, monkeypatch):
    def stream(self, images, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99999999999 bytes.")
        yield

    monkeypatch.setattr(FakeSegmenter, "stream", stream)
    assert segment(photos) == 2
    assert "error: not enough memory; try a smaller --short-side" in capsys.readouterr().err


def test_an_interruption_keeps_what_is_done(segment, fake, photos, tmp_path, capsys):
    fake.interrupt_at = 1
    assert segment(photos) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    out = tmp_path / "out"
    assert files_in(out) == [name for name in ALL if "/b." not in name]
    assert len(read_json(out / "panoptic.json")["annotations"]) == 1


def test_an_interruption_before_anything_is_done_writes_nothing(segment, fake, photos, tmp_path):
    fake.interrupt_at = 0
    assert segment(photos) == 130
    assert not (tmp_path / "out").exists()


# Without the fake.


def test_vocabularies_are_listed(capsys):
    assert cli.main(["vocabularies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(vocabulary.shipped())
    assert "coco_panoptic 133 80" in [" ".join(line.split()[i] for i in (0, 1, 3)) for line in lines]


def test_help_needs_no_jax():
    """Importing JAX takes seconds on a slow machine."""
    code = (
        "import sys, fcclip_jax.cli as c; c._parser().format_help(); print({'jax', 'flax', 'numpy'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize("command", [[], ["segment"]])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    assert "vocabularies" in capsys.readouterr().out


def test_the_real_thing(tmp_path, photos, capsys, monkeypatch):
    """Random weights at the smallest size: two photographs of one bucket, a bad one between them."""
    monkeypatch.setattr(caching, "keep_compiled_programs", lambda: None)
    write_photo(photos / "c.jpg", (47, 64), seed=1)
    (photos / "b.png").write_bytes(b"no image")
    arguments = ["--classes", "cat, remote control, sofa", "--stuff", "sofa", "--weights", "random"]
    arguments += ["--short-side", "32", "--max-side", "64", "--buckets", "64x64", "--batch-size", "2"]
    arguments += ["--threshold", "0", "--overlap-threshold", "0", "--output", str(tmp_path / "out")]
    assert cli.main(["segment", str(photos), *arguments]) == 1
    captured = capsys.readouterr()
    assert "weights are random" in captured.err and "b.png" in captured.err
    assert "2 segmented, 1 skipped" in captured.out

    out = tmp_path / "out"
    record = read_json(out / "panoptic.json")
    assert [(image["height"], image["width"]) for image in record["images"]] == [(48, 64), (47, 64)]
    segments = 0
    for annotation in record["annotations"]:
        with Image.open(out / "panoptic" / annotation["file_name"]) as png:
            ids = np.asarray(png).astype(int) @ [1, 256, 65536]
        areas = {info["id"]: info["area"] for info in annotation["segments_info"]}
        assert areas == {id: area for id, area in zip(*np.unique(ids, return_counts=True), strict=True) if id}
        segments += len(areas)
    assert segments and read_json(out / "instances.json"), "the test shows nothing if nothing is found"
