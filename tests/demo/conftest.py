"""A browser, and a visitor's photograph."""

import pathlib
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.demo import browser
from tests.demo.answers_known import PICTURES


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[browser.Browser]:
    with browser.started(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def photo(tmp_path) -> pathlib.Path:
    """Returns a shipped scene under a name of a visitor's."""
    path = tmp_path / "my_photo.png"
    with Image.open(PICTURES / "snow.jpg") as scene:
        scene.save(path)
    return path
