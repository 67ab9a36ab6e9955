"""Tests `fcclip segment`, mostly with a segmenter that computes nothing; once with the real one."""

import contextlib
import errno
import io
import os
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from fcclip_jax import caching, cli
from fcclip_jax.models.descriptions import DefaultsDescription
from tests.commands.segmenting import FakeSegmenter, fails, files_in, read_json, write_photo

ALL = [
    ".run/*.jsonl",
    ".run/run.json",
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
    assert re.fullmatch(
        r"2 classes: cat, sofa\n"
        rf"2 images segmented on the CPU in \d+ s \(0 s compiling\). The results are in {tmp_path}/out.\n",
        capsys.readouterr().out,
    )
    (made,) = fake
    assert made.weights == "weights"
    assert made.options == {
        "short_side": None,
        "max_side": None,
        "buckets": None,
        "batch_size": 1,
        "precision": None,
        "output_size": "image",
        "tasks": ("panoptic", "semantic", "instances"),
        "overlap_threshold": None,
        "void_trust": None,
    }


def test_options_reach_the_segmenter(segment, fake, photos, tmp_path):
    options = "--task instances,panoptic --threshold 0.25 --overlap-threshold 0.1 --short-side 64 --max-side 96"
    options += (
        " --buckets 64x96,96x64 --batch-size 4 --precision bfloat16 --output-size 300 --stuff sofa --void-trust 0.5"
    )
    assert segment(photos, *options.split()) == 0
    (made,) = fake
    assert made.options == {
        "short_side": 64,
        "max_side": 96,
        "buckets": ((64, 96), (96, 64)),
        "batch_size": 4,
        "precision": "bfloat16",
        "output_size": 300,
        "tasks": ("panoptic", "instances"),
        "overlap_threshold": 0.1,
        "void_trust": {"panoptic": 0.5},
    }
    assert made.vocabulary.thing_mask == (True, False)
    assert files_in(tmp_path / "out") == [name for name in ALL if "semantic" not in name]
    assert len(read_json(tmp_path / "out/instances.json")) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("semantic=0.2,instances=0", {"semantic": 0.2, "instances": 0.0}),
        ("all=0.3", {"panoptic": 0.3, "semantic": 0.3, "instances": 0.3}),
    ],
)
def test_void_trust_by_task(segment, fake, photos, text, expected):
    assert segment(photos, "--void-trust", text) == 0
    assert fake[0].options["void_trust"] == expected


def test_more_megapixels_than_pillow_reads(segment, fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    photo = write_photo(tmp_path / "large.png", (48, 64))
    error = fails(capsys, segment(photo), skipped=1)
    assert error.startswith("error: no photograph could be segmented")
    assert segment(photo, "--max-megapixels", 1) == 0
    assert Image.MAX_IMAGE_PIXELS == 500_000


def test_the_threshold_is_the_checkpoints_by_default(segment, photos, monkeypatch, tmp_path):
    monkeypatch.setattr(FakeSegmenter, "defaults", DefaultsDescription(instance_threshold=0.25))
    assert segment(photos) == 0
    assert len(read_json(tmp_path / "out/instances.json")) == 4
    assert segment(photos, "--threshold", 0.5, "--overwrite") == 0
    assert len(read_json(tmp_path / "out/instances.json")) == 2


def test_words_that_the_model_does_not_know(segment, photos, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(FakeSegmenter, "known_words", ("cat", "sofa", "soda", "dog"))
    assert segment(photos, classes="cat, Sofa") == 0
    capsys.readouterr()
    error = fails(capsys, segment(photos, classes="cat, sofas", output=tmp_path / "none"))
    assert error == (
        "error: this model knows 4 words; 'sofas' is not one of them; nearest: sofa, soda; `fcclip vocabularies world`"
        " lists them all"
    )
    assert not (tmp_path / "none").exists()


def test_random_weights_are_called_random(segment, photos, capsys):
    assert segment(photos, weights="random") == 0
    assert "weights are random" in capsys.readouterr().err


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
    assert first.startswith("skipped: cannot read") and first.endswith("text.jpg: it is not an image in a known format")
    assert second.startswith("skipped: cannot read") and "truncated.jpg" in second
    assert re.search(
        r"^2 images segmented on the CPU in \d+ s \(0 s compiling\), 2 skipped\. ", captured.out, re.MULTILINE
    )
    assert files_in(tmp_path / "out") == ALL


def test_nothing_readable(segment, tmp_path, capsys):
    damage(tmp_path)
    error = fails(capsys, segment(tmp_path / "text.jpg", tmp_path / "truncated.jpg"), skipped=2)
    assert error == "error: no photograph could be segmented; the lines above give the reasons"
    assert not (tmp_path / "out").exists()


def test_photographs_larger_than_all_buckets_are_skipped(segment, photos, capsys):
    """a.jpg is landscape, b.png portrait."""
    assert segment(photos, "--short-side", 64, "--max-side", 96, "--buckets", "64x96") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "b.png" in line and "96x64 fits none of the buckets 64x96" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--buckets", "800"], "bucket '800' is not HEIGHTxWIDTH"),
        (["--buckets", "800x1088,100x200"], "bucket 100x200 has a side that is not a multiple of 32; try 128x224"),
        (["--short-side", "2000", "--max-side", "1333"], "--short-side 2000 is more than --max-side 1333"),
    ],
)
def test_sizes_that_make_no_sense(segment, fake, photos, tmp_path, capsys, arguments, message):
    assert message in fails(capsys, segment(photos, *arguments))
    assert not fake and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "panotic"], "'panotic' is not a task (did you mean panoptic?): give one or more of panoptic"),
        (["--threshold", "1.5"], "'1.5' is not a number from 0 to 1"),
        (["--threshold", "nan"], "'nan' is not a number from 0 to 1"),
        (["--overlap-threshold", "half"], "'half' is not a number from 0 to 1"),
        (["--void-trust", "2"], "'2' is not a number from 0 to 1"),
        (["--void-trust", "masks=0.5"], "'masks' is not a task"),
        (["--batch-size", "0"], "'0' is not a positive whole number"),
        (["--short-side", "1.5"], "'1.5' is not a positive whole number"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_arguments_that_cannot_be_parsed(segment, fake, photos, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        segment(photos, *arguments)
    assert message in fails(capsys, stop.value.code)
    assert not fake


@pytest.mark.parametrize(
    ("tasks", "parsed"),
    [("all", ("panoptic", "semantic", "instances")), ("semantic, panoptic", ("panoptic", "semantic"))],
)
def test_tasks(segment, fake, photos, tasks, parsed):
    assert segment(photos, "--task", tasks) == 0
    assert fake[0].options["tasks"] == parsed


def test_output_that_is_a_file(segment, fake, photos, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert f"taken is a file; choose a folder for --output {tmp_path}/taken/out" in fails(
        capsys, segment(photos, output=tmp_path / "taken/out")
    )
    assert not fake


def test_a_checkpoint_that_is_not_there(photos, tmp_path, capsys):
    arguments = ["--classes", "cat", "--weights", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    assert "none" in fails(capsys, cli.main(["segment", str(photos), *arguments]))
    assert not (tmp_path / "out").exists()


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
    assert "error: not enough memory; try --output-size network, or a smaller --short-side" in capsys.readouterr().err


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


def test_the_real_thing(tmp_path, photos, capsys, monkeypatch):
    """Segments two photographs of one bucket, with a damaged one between them, with random weights."""
    monkeypatch.setattr(caching, "keep_compiled_programs", lambda: None)
    seconds, compile_times = [], caching.compile_times

    @contextlib.contextmanager
    def spied():
        with compile_times() as times:
            yield times
            seconds.append(sum(times))

    monkeypatch.setattr(caching, "compile_times", spied)
    write_photo(photos / "c.jpg", (47, 64), seed=1)
    (photos / "b.png").write_bytes(b"no image")
    arguments = ["--classes", "cat, remote control, sofa", "--stuff", "sofa", "--weights", "random"]
    arguments += ["--short-side", "32", "--max-side", "64", "--buckets", "64x64", "--batch-size", "2"]
    arguments += ["--threshold", "0", "--overlap-threshold", "0", "--output", str(tmp_path / "out")]
    assert cli.main(["segment", str(photos), *arguments]) == 1
    captured = capsys.readouterr()
    assert "weights are random" in captured.err and "b.png" in captured.err
    assert captured.out.startswith("3 classes: cat, remote control, sofa (stuff)\n")
    summary = re.search(
        r"^2 images segmented on the CPU in (\d+) s \((\d+) s compiling\), 1 skipped\. ", captured.out, re.MULTILINE
    )
    assert 0 < seconds[0] and f"{seconds[0]:.0f}" == summary[2] and int(summary[2]) <= int(summary[1])

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
