"""Finding photographs: files, folders and patterns."""

import os
import re

import pytest

from fcclip_jax.commands.photographs import find_photos
from tests.commands.segmenting import fails, read_json, write_photo


def test_files_folders_and_patterns_each_once(tmp_path):
    for name in ("a.jpg", "sub/b.PNG", "sub/deep/c.webp", ".hidden/d.jpg", "._a.jpg", "out/overlays/a.jpg", "[x].jpg"):
        write_photo(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photograph")

    def found(*given):
        found = find_photos([str(tmp_path / name) for name in given], output=tmp_path / "out")
        return [path.relative_to(tmp_path).as_posix() for path in found.paths]

    assert found("") == ["[x].jpg", "a.jpg", "sub/b.PNG", "sub/deep/c.webp"]
    assert found("a.jpg", "", "sub/../a.jpg") == ["a.jpg", "[x].jpg", "sub/b.PNG", "sub/deep/c.webp"]
    assert found("*.jpg") == ["[x].jpg", "a.jpg"]
    assert found("**/*.webp") == ["sub/deep/c.webp"]
    assert found("[x].jpg") == ["[x].jpg"]
    assert found("sub/*") == ["sub/b.PNG"]
    assert found("notes.txt") == ["notes.txt"], "files that are named explicitly are tried"


def test_linked_folders_are_searched_and_loops_end(tmp_path):
    for name in ("photos/b/x.jpg", "elsewhere/deep/y.jpg", "single/z.jpg"):
        write_photo(tmp_path / name)
    folder = tmp_path / "photos"
    (folder / "a").symlink_to(folder / "b")
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    (folder / "d.jpg").symlink_to(tmp_path / "single" / "z.jpg")
    for name in ("loop", "again"):  # glob would follow the two in turns, 2^40 times
        (folder / name).symlink_to(folder)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    for given in (folder, folder / "**" / "*.jpg", folder / "**"):
        found = find_photos([str(given)], output=tmp_path / "out")
        assert [path.relative_to(folder).as_posix() for path in found.paths] == ["b/x.jpg", "c/deep/y.jpg", "d.jpg"]


def test_what_is_passed_over_is_counted(tmp_path):
    folder = tmp_path / "photos"
    for name in ("a.JPG", "sub/b.jfif", "c.jpe", "d.mpo", "e.jp2", "f.avif", "g.HEIC", "h.heif", "i.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")  # nothing is opened
    for name in ("1.txt", "sub/2.TXT", "sub/raw.cr2", "README", ".hidden.txt", ".git/config"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    found = find_photos([str(folder)], output=tmp_path / "out")
    assert len(found.paths) == 9
    assert found.passed_over == {".txt": 2, ".cr2": 1, "": 1}
    assert found.remark == " 4 files that are not images were passed over (2 .txt, 1 without a suffix, 1 .cr2)."
    assert find_photos([str(folder), str(folder / "*"), str(folder / "1.txt")], output=tmp_path).passed_over == {
        ".txt": 1,
        ".cr2": 1,
        "": 1,
    }, "each once, and a file that is named is no other"
    assert find_photos([str(folder / "a.JPG")], output=tmp_path / "out").remark == ""
    for number in range(5):
        (folder / f"x.{number}").write_text("")
    assert find_photos([str(folder)], output=tmp_path / "out").remark.endswith(", 3 others).")


def test_links_without_a_target_and_folders_that_cannot_be_read(tmp_path, monkeypatch):
    """Neither is passed over in silence: the first is reported as a photograph that cannot be read."""
    write_photo(tmp_path / "a.jpg")
    write_photo(tmp_path / "locked" / "c.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_photos([str(tmp_path)], output=tmp_path / "out")
    assert [path.name for path in found.paths] == ["a.jpg", "b.jpg"]
    assert found.remark == f" 1 folder could not be read ({tmp_path / 'locked'})."


def test_the_closing_line_counts_what_was_passed_over(segment, photos, capsys):
    (photos / "notes.txt").write_text("")
    for _ in range(2):
        assert segment(photos, output=photos) == 0
        assert capsys.readouterr().out.endswith(". 1 file that is not an image was passed over (1 .txt).\n")


def test_the_pictures_of_other_runs_are_not_photographs(segment, photos):
    for output in ("out", "second", ".", "out"):
        assert segment(photos, output=photos / output) == 0
        assert len(read_json(photos / output / "images.json")["images"]) == 2


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
        ("empty", "empty has no images; their names end in .avif, .bmp, .gif"),
        ("photos/*.bmp", r"photos/\*\.bmp has no images"),
    ],
)
def test_photographs_that_are_not_there(segment, fake, photos, tmp_path, capsys, name, message):
    (tmp_path / "empty").mkdir()
    assert re.search(message, fails(capsys, segment(photos / "a.jpg", tmp_path / name)))
    assert not fake and not (tmp_path / "out").exists()


def test_a_home_folder_and_names_that_are_empty(segment, fake, photos, tmp_path, monkeypatch, capsys):
    """An unset variable of the shell is an empty name, which pathlib takes for the working folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert segment(photos, output="~/home") == 0
    assert len(read_json(tmp_path / "home/images.json")["images"]) == 2
    assert "the name of a photograph is empty" in fails(capsys, segment(""))
    with pytest.raises(SystemExit, match="2"):
        segment(photos, output="")
    assert "argument --output: it is empty; name a folder" in capsys.readouterr().err
    assert len(fake) == 1
