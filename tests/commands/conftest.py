"""Fixtures for the tests of `fcclip segment`."""

import pytest

from fcclip_jax import cli
from fcclip_jax.inference import segmenter
from tests.commands.segmenting import FakeSegmenter, Made, write_photo


@pytest.fixture
def fake(monkeypatch):
    """Returns the segmenters that the command made, in order."""
    made = Made()

    def make(weights, **options):
        made.append(FakeSegmenter(weights, interrupt_at=made.interrupt_at, **options))
        return made[-1]

    monkeypatch.setattr(segmenter.Segmenter, "load", make)
    return made


@pytest.fixture
def photos(tmp_path):
    """Returns a.jpg and b.png, of different sizes."""
    folder = tmp_path / "photos"
    write_photo(folder / "a.jpg")
    write_photo(folder / "b.png", (60, 40))
    return folder


@pytest.fixture
def segment(tmp_path, fake):
    """Runs `fcclip segment` on these photographs and returns its exit code."""

    def run(*arguments, classes="cat, sofa", output=tmp_path / "out", weights="weights"):
        words = [str(argument) for argument in arguments]
        if classes is not None:
            words += ["--classes", str(classes)]
        return cli.main(["segment", *words, "--weights", str(weights), "--output", str(output)])

    return run
