"""Finding photographs: files, folders and patterns."""

import re

import pytest

from fcclip_jax.commands.photographs import find_photos
from tests.commands.segmenting import fails, read_json, write_photo


def test_files_folders_and_patterns_each_once(tmp_path):
    for name in ("a.jpg", "sub/b.PNG", "sub/deep/c.webp", ".hidden/d.jpg", "._a.jpg", "out/overlays/a.jpg", "[x].jpg"):
        write_photo(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photograph")

    def found(*given):
        paths = find_photos([str(tmp_path / name) for name in given], output=tmp_path / "out")
        return [path.relative_to(tmp_path).as_posix() for path in paths]

    assert found("") == ["[x].jpg", "a.jpg", "sub/b.PNG", "sub/deep/c.webp"]
    assert found("a.jpg", "", "sub/../a.jpg") == ["a.jpg", "[x].jpg", "sub/b.PNG", "sub/deep/c.webp"]
    assert found("*.jpg") == ["[x].jpg", "a.jpg"]
    assert found("**/*.webp") == ["sub/deep/c.webp"]
    assert found("[x].jpg") == ["[x].jpg"]
    assert found("sub/*") == ["sub/b.PNG"]
    assert found("notes.txt") == ["notes.txt"], "files that are named explicitly are tried"


@pytest.mark.parametrize("output", ["out", ".", ".."])
def test_its_own_pictures_are_not_photographs(segment, photos, output):
    """Finds the photographs alone, with results below, among or above them."""
    for _ in range(2):
        assert segment(photos, output=photos / output) == 0
        assert len(read_json(photos / output / "images.json")["images"]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jpg", "no photograph or folder exists at .*missing.jpg"),
        ("empty", "empty has no images; their names end in .bmp, .gif"),
        ("photos/*.bmp", r"photos/\*\.bmp has no images"),
    ],
)
def test_photographs_that_are_not_there(segment, fake, photos, tmp_path, capsys, name, message):
    (tmp_path / "empty").mkdir()
    assert re.search(message, fails(capsys, segment(photos / "a.jpg", tmp_path / name)))
    assert not fake and not (tmp_path / "out").exists()
