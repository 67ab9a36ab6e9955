"""`fcclip segment` after it was stopped, killed or changed: what is done is kept, and the JSON files match the others."""

import errno
import itertools
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.commands.segment_log import alone
from fcclip_jax.inference.result_files import Exporter
from tests.commands.segmenting import FakeSegmenter, fails, files_in, read_json, write_photo


@pytest.fixture
def photos(tmp_path):
    """Returns five photographs of different sizes; two in different folders share a name."""
    folder = tmp_path / "photos"
    for i, name in enumerate(["a.jpg", "b.png", "c/a.jpg", "c/d.jpg", "e.jpg"]):
        write_photo(folder / name, (40 + i, 50), seed=i)
    return folder


def contents(folder):
    """Returns all results by their names; the log holds times."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.[jp]*g")} | {
        path.name: path.read_bytes() for path in folder.glob("*.json")
    }


def check_that_all_match(out):
    """Every file of an image is in the JSON files, and the other way round."""
    record = read_json(out / "panoptic.json")
    names = {annotation["file_name"].removesuffix(".png") for annotation in record["annotations"]}
    for folder, suffix in (("panoptic", ".png"), ("semantic", ".png"), ("overlays", ".panoptic.jpg")):
        assert {path.name.removesuffix(suffix) for path in (out / folder).glob(f"*{suffix}")} == names
    images = {image["id"]: image for image in record["images"]}
    assert images.keys() == {annotation["image_id"] for annotation in record["annotations"]}
    assert record["images"] == read_json(out / "images.json")["images"]
    for annotation in record["annotations"]:
        with Image.open(out / "panoptic" / annotation["file_name"]) as png:
            image = images[annotation["image_id"]]
            assert png.size == (image["width"], image["height"])
    assert {instance["image_id"] for instance in read_json(out / "instances.json")} == images.keys()


def test_an_interrupted_run_goes_on(segment, fake, photos, tmp_path, capsys):
    assert segment(photos, output=tmp_path / "whole") == 0
    fake.interrupt_at = 2
    assert segment(photos) == 130
    check_that_all_match(tmp_path / "out")
    fake.interrupt_at = None
    assert segment(photos) == 0
    assert fake[-1].asked == ["a.jpg", "d.jpg", "e.jpg"], "the first two are done"
    assert re.search(
        r"\n3 images segmented on the CPU in \d+ s \(0 s compiling\), 2 done before\. ", capsys.readouterr().out
    )
    check_that_all_match(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert segment(photos) == 0
    assert fake[-1].asked == []
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_killed_again_and_again(segment, photos, tmp_path):
    """Each run is killed before a later rename than the one before: within an image's files, the JSON files, the log's record."""
    assert segment(photos, output=tmp_path / "whole") == 0
    out = tmp_path / "out"
    arguments = ["segment", photos, "--classes", "cat, sofa", "--weights", "weights", "--output", out]
    for kills in itertools.count():
        command = [sys.executable, "-m", "tests.commands.killed", str(2 * kills + 1), *map(str, arguments)]
        code = subprocess.run(command, check=False, capture_output=True).returncode
        if code != -signal.SIGKILL:
            break
    assert code == 0 and kills >= 3  # threads write several files between two of them
    check_that_all_match(out)
    assert contents(out) == contents(tmp_path / "whole")
    assert not [name for name in files_in(out) if name.endswith((".tmp", ".partial"))]


def test_more_photographs_and_changed_ones(segment, fake, photos, tmp_path):
    assert segment(photos) == 0
    before = read_json(tmp_path / "out/images.json")["images"]
    write_photo(photos / "0.jpg", (33, 44))
    write_photo(photos / "b.png", (70, 80))
    assert segment(photos) == 0
    assert fake[-1].asked == ["0.jpg", "b.png"]
    check_that_all_match(tmp_path / "out")
    after = {image["id"]: image for image in read_json(tmp_path / "out/images.json")["images"]}
    for image in before:
        size = (80, 70) if image["file_name"].endswith("b.png") else (image["width"], image["height"])
        assert after.pop(image["id"]) == image | dict(zip(("width", "height"), size, strict=True))
    (new,) = after.values()
    assert new["file_name"] == (photos / "0.jpg").as_posix() and new["id"] == 6
    assert segment(photos / "e.jpg") == 0
    assert len(read_json(tmp_path / "out/images.json")["images"]) == 6, "the results of the others are still there"


def test_results_that_were_removed_are_made_again(segment, fake, photos, tmp_path):
    assert segment(photos) == 0
    (tmp_path / "out/semantic/b.png").unlink()
    assert segment(photos) == 0
    assert fake[-1].asked == ["b.png"]
    check_that_all_match(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "changed", "said"),
    [
        ([], {"classes": "cat, dog"}, 'results with classes = ["cat", "sofa"], but this one has ["cat", "dog"]'),
        (["--stuff", "sofa"], {}, "results with vocabulary = "),
        (["--task", "panoptic"], {}, 'results with tasks = ["panoptic", "semantic", "instances"]'),
        (["--threshold", "0.25"], {}, "results with threshold = 0.5, but this one has 0.25"),
        (["--no-overlays"], {}, "results with overlays = true, but this one has false"),
        ([], {"weights": "others"}, 'results with weights = "weights", but this one has "others"'),
    ],
)
def test_other_settings_are_another_run(segment, photos, tmp_path, capsys, arguments, changed, said):
    assert segment(photos) == 0
    before = contents(tmp_path / "out")
    error = fails(capsys, segment(photos, *arguments, **changed))
    assert said in error and error.endswith("give another --output, or replace them with --overwrite")
    assert contents(tmp_path / "out") == before


def test_overwrite_removes_what_the_earlier_run_wrote(segment, photos, tmp_path):
    assert segment(photos) == 0
    out = tmp_path / "out"
    (out / "notes.txt").write_text("mine")
    (out / "panoptic/mine.png").write_bytes(b"mine")
    assert segment(photos / "a.jpg", "--overwrite", "--task", "panoptic") == 0
    assert files_in(out) == [
        ".run/*.jsonl",
        ".run/run.json",
        "images.json",
        "notes.txt",
        "overlays/a.panoptic.jpg",
        "panoptic.json",
        "panoptic/a.png",
        "panoptic/mine.png",
    ]


def test_a_name_that_the_file_system_does_not_take(segment, photos, tmp_path, capsys, monkeypatch):
    write = Exporter.write

    def refusing(exporter, photo, result):
        if photo.name == "b":
            error = OSError("cannot write b: File name too long")
            error.errno = errno.ENAMETOOLONG
            raise error
        return write(exporter, photo, result)

    monkeypatch.setattr(Exporter, "write", refusing)
    assert segment(photos) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == f"skipped: {photos}/b.png: cannot write b: File name too long"
    check_that_all_match(tmp_path / "out")


def test_a_name_as_long_as_a_file_system_allows(segment, photos, tmp_path):
    write_photo(photos / ("n" * 251 + ".jpg"))
    write_photo(photos / ("n" * 251 + ".png"))
    write_photo(photos / ("\u732b" * 80 + ".jpg"))
    assert segment(photos) == 0
    check_that_all_match(tmp_path / "out")
    assert len(read_json(tmp_path / "out/images.json")["images"]) == 8


def test_a_photograph_that_needs_too_much_memory(segment, photos, tmp_path, capsys, monkeypatch):
    stream = FakeSegmenter.stream

    def without_memory_for_the_third(self, images, **options):
        for index, result in stream(self, images, **options):
            yield index, MemoryError("not enough memory") if index == 2 else result

    monkeypatch.setattr(FakeSegmenter, "stream", without_memory_for_the_third)
    assert segment(photos) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"skipped: {photos}/c/a.jpg: not enough memory; try --output-size network")
    check_that_all_match(tmp_path / "out")


def test_a_full_disk_keeps_what_is_done(segment, photos, tmp_path, capsys, monkeypatch):
    write = Exporter.write

    def full(exporter, photo, result):
        if photo.name == "e":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "e.png")
        return write(exporter, photo, result)

    with monkeypatch.context() as patch:
        patch.setattr(Exporter, "write", full)
        assert fails(capsys, segment(photos)) == "error: e.png: No space left on device"
    check_that_all_match(tmp_path / "out")
    assert len(read_json(tmp_path / "out/images.json")["images"]) == 4
    assert segment(photos) == 0
    check_that_all_match(tmp_path / "out")
    assert len(read_json(tmp_path / "out/images.json")["images"]) == 5


def test_a_damaged_log_is_named(segment, photos, tmp_path, capsys):
    assert segment(photos) == 0
    (log,) = (tmp_path / "out/.run").glob("*.jsonl")
    log.write_text("{\n" + log.read_text())
    assert f"{log} is damaged; remove it, and what it lists is done again" in fails(capsys, segment(photos))
    log.unlink()
    assert segment(photos) == 0
    check_that_all_match(tmp_path / "out")


@pytest.mark.parametrize(
    "line",
    [
        '{"photograph": "/a.jpg"}',
        '{"photograph": "/a.jpg", "file": "?", "name": "a", "time": 1, "image": {"id": 1}, "annotation": {}, "instances": []}',
        '{"photograph": "/a", "file": [1, 2], "name": "../a", "time": 1, "image": {"id": 1}, "annotation": {}, "instances": []}',
    ],
)
def test_a_line_of_another_version(segment, photos, tmp_path, capsys, line):
    assert segment(photos) == 0
    (log,) = (tmp_path / "out/.run").glob("*.jsonl")
    log.write_text(f"{line}\n" + log.read_text())
    assert "a line that describes no photograph; give another --output" in fails(capsys, segment(photos))
    log.write_text("{\n" + log.read_text())
    assert segment(photos / "a.jpg", "--overwrite") == 0
    assert sorted(path.name for path in (tmp_path / "out/panoptic").iterdir()) == ["a.png"]
    check_that_all_match(tmp_path / "out")


def test_two_runs_at_once(segment, fake, photos, tmp_path, capsys):
    with alone(tmp_path / "out"):
        assert f"another fcclip segment is using {tmp_path}/out; wait" in fails(capsys, segment(photos))
    assert not (tmp_path / "out").exists() and not fake
    assert segment(photos) == 0


def test_a_photograph_that_changes_while_it_is_segmented(segment, fake, photos, tmp_path, capsys, monkeypatch):
    """Its results may be of the earlier content, so the next run makes them again; one that disappears ends nothing."""
    write = Exporter.write

    def writing(exporter, photo, result):
        if photo.name == "b":
            write_photo(photos / "b.png", (70, 80))
        elif photo.name == "d":
            photo.path.unlink()
        return write(exporter, photo, result)

    with monkeypatch.context() as patch:
        patch.setattr(Exporter, "write", writing)
        assert segment(photos) == 0
    assert segment(photos) == 0
    assert fake[-1].asked == ["b.png"]
    check_that_all_match(tmp_path / "out")
    sizes = {image["file_name"]: image["height"] for image in read_json(tmp_path / "out/images.json")["images"]}
    assert sizes[f"{photos}/b.png"] == 70 and f"{photos}/c/d.jpg" in sizes


def test_files_are_the_same_whatever_finished_first(segment, photos, tmp_path, monkeypatch):
    assert segment(photos, output=tmp_path / "whole") == 0
    stream = FakeSegmenter.stream
    monkeypatch.setattr(
        FakeSegmenter, "stream", lambda self, images, **options: reversed(list(stream(self, images, **options)))
    )
    assert segment(photos) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_tasks_without_pictures(segment, photos, tmp_path):
    assert segment(photos / "a.jpg", "--no-overlays") == 0
    assert [name for name in files_in(tmp_path / "out") if not name.startswith(".run")] == [
        "images.json",
        "instances.json",
        "panoptic.json",
        "panoptic/a.png",
        "semantic/a.png",
    ]
    assert np.asarray(Image.open(tmp_path / "out/semantic/a.png")).shape == (40, 50)
