"""Writes files completely or not at all, checks early that there is space and permission, and lists folders."""

import contextlib
import errno
import json
import os
import pathlib
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a full disk, and of limits on the user's files."""
PLAN = "plan.json"
"""The file in which `claim` identifies the data of a folder."""


@contextlib.contextmanager
def replacing(path: epath.PathLike, *, sole_writer: bool = False) -> Iterator[epath.Path]:
    """Yields a temporary path in the same folder, which becomes `path` when the block ends without an error.

    Folders are created as needed. After an error the temporary file is deleted.

    sole_writer: no other process writes this file. The temporary name is then always the same, so the next run overwrites
        the remains of a killed one.
    """
    path = epath.Path(path)
    # Random names do not contain the file's own, which may already be as long as the file system allows.
    temporary = path.with_name(f"{path.name}.partial" if sole_writer else f".{uuid.uuid4().hex}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_files(contents: Mapping[pathlib.Path, bytes], *, sole_writer: bool = False) -> None:
    """Writes all of the files or none: first each under a temporary name, then all are renamed.

    sole_writer: see `replacing`.

    Raises:
        OSError: a file cannot be written, because the disk is full for example.
    """
    try:
        with contextlib.ExitStack() as stack:
            for path, content in contents.items():
                pathlib.Path(stack.enter_context(replacing(path, sole_writer=sole_writer))).write_bytes(content)
    except OSError as error:
        said = OSError(f"cannot write {path}: {error.strerror or error}")
        said.errno = error.errno
        raise said from error


def claim(folder: epath.Path, plan: Mapping[str, Any]) -> None:
    """Records in an empty folder which data is being written there, so that a repeated command may resume.

    plan: what identifies the data, in values that JSON can represent.

    Raises:
        ValueError: the folder has the record of other data, or files without a record.
    """
    record = folder / PLAN
    if record.exists():
        if json.loads(record.read_text("utf-8")) != plan:
            raise ValueError(f"{folder} contains other data, finished or not; empty it or choose another folder")
        return
    if any(folder.iterdir()):
        raise ValueError(f"{folder} contains other files; choose an empty folder")
    record.write_text(json.dumps(plan), "utf-8")


@contextlib.contextmanager
def locked(folder: pathlib.Path, command: str) -> Iterator[None]:
    """Raises ValueError if another process has locked the folder. The system releases the locks of killed processes.

    command: what may have locked it, for the error message.
    """
    try:
        import fcntl
    except ImportError:  # Windows cannot lock a folder
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"another {command} is using {folder}; wait until it has finished") from None
    except OSError:  # some network drives cannot be locked either
        pass
    try:
        yield
    finally:
        os.close(handle)


def walk(
    folder: epath.PathLike, unreadable: Callable[[OSError], None] | None = None
) -> Iterator[tuple[epath.Path, list[str]]]:
    """Yields the folder and all folders below it, sorted, with the sorted names of their files; hidden ones are left out.

    Links to folders are followed after all other folders, once each, so loops of links end, and a folder that is both here
    and linked to has its own path.

    unreadable: receives the error of a folder that cannot be listed; by default it is raised.
    """

    def refuse(error: OSError) -> None:
        raise error

    if "://" in os.fspath(folder):
        for remote, folders, names in epath.Path(folder).walk():
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield remote, sorted(name for name in names if not name.startswith("."))
        return
    seen, waiting = set(), [os.fspath(folder)]
    for start in waiting:
        for path, folders, names in os.walk(start, onerror=unreadable or refuse):
            real = os.path.realpath(path)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            inside = {name: os.path.join(path, name) for name in sorted(folders) if not name.startswith(".")}
            waiting += [inside[name] for name in inside if os.path.islink(inside[name])]
            folders[:] = [name for name in inside if not os.path.islink(inside[name])]
            yield epath.Path(path), sorted(name for name in names if not name.startswith("."))


def check_space(folder: str | os.PathLike[str], size: int) -> None:
    """Checks that `size` bytes fit into a local folder, on systems that can reserve space.

    Call it before writing a checkpoint: orbax writes with many threads, which continue for a while after the disk is full
    and report it one by one.

    Raises:
        OSError: the bytes do not fit.
    """
    if not os.path.isdir(folder) or not hasattr(os, "posix_fallocate"):
        return
    # In pieces no larger than orbax's files, because file sizes may be limited too.
    with contextlib.ExitStack() as pieces:
        try:
            for start in range(0, size, 2**31):
                piece = pieces.enter_context(tempfile.TemporaryFile(dir=folder))
                os.posix_fallocate(piece.fileno(), 0, min(2**31, size - start))
        except OSError as error:
            if error.errno in NO_SPACE:
                raise OSError(f"it takes {size / 2**20:.1f} MiB: {os.strerror(error.errno)}; free some space") from None


def check_writable(path: str | os.PathLike[str], what: str = "") -> None:
    """Checks that a local folder exists or can be created at `path` and is writable; creates nothing.

    Call it before the work whose results go there.

    what: the path's name in messages, such as "--output out/"; by default the path itself.

    Raises:
        NotADirectoryError: the path, or one above it, is a file.
        OSError: the folder is not writable.
    """
    if "://" in os.fspath(path):
        return
    path = pathlib.Path(path).expanduser().absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is a file; choose a folder for {what or path}")
    try:
        tempfile.TemporaryDirectory(dir=nearest).cleanup()
    except OSError as error:
        raise OSError(
            f"{what or path} cannot be written: {error.strerror} in {nearest}; choose another folder"
        ) from None
