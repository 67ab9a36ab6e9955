"""Files are written completely or not at all, and folders that cannot be written are found early."""

import errno
import os
import re
import tempfile

import pytest
from etils import epath

from fcclip_jax import files


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("sole_writer", [False, True])
def test_a_file_is_replaced_when_the_block_ends(tmp_path, sole_writer):
    path = tmp_path / "sub" / "a.txt"
    for content in ("first", "second"):
        with files.replacing(path, sole_writer=sole_writer) as temporary:
            temporary.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content and names_in(tmp_path) == ["sub", "sub/a.txt"]
    with pytest.raises(RuntimeError, match="stop"), files.replacing(path, sole_writer=sole_writer) as temporary:
        temporary.write_text("third")
        raise RuntimeError("stop")
    assert path.read_text() == "second" and names_in(tmp_path) == ["sub", "sub/a.txt"]


def test_only_a_sole_writer_has_a_fixed_temporary_name(tmp_path):
    """It overwrites the remains of a killed run; writers of the same file use different names."""
    path = epath.Path(tmp_path) / "a.txt"
    (path.parent / "a.txt.partial").write_text("remains of a killed run")
    with files.replacing(path, sole_writer=True) as temporary:
        assert temporary == path.parent / "a.txt.partial"
        temporary.write_text("whole")
    assert names_in(tmp_path) == ["a.txt"]
    with files.replacing(path) as first, files.replacing(path) as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert path.read_text() == "1" and names_in(tmp_path) == ["a.txt"]


def test_writable_folders(tmp_path):
    files.check_writable(tmp_path / "new" / "folder")
    files.check_writable("gs://bucket/folder")
    assert names_in(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file; choose a folder for --output x$"):
        files.check_writable(tmp_path / "file" / "folder", "--output x")


def test_a_folder_without_permission(tmp_path, monkeypatch):
    """Root may write anywhere, so the system's refusal is simulated."""

    def refuse(dir):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), dir)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    error = f"{tmp_path}/x cannot be written: Permission denied in {tmp_path}; choose another folder"
    with pytest.raises(OSError, match=f"^{re.escape(error)}$"):
        files.check_writable(tmp_path / "x")
