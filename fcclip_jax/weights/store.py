"""Where weights are kept, below the cache folder: converted checkpoints, downloads in progress, and recorded checksums.

weights/NAME/             a converted checkpoint
weights/.downloads/NAME/  a download from Google Drive; the hub's client has a cache of its own
weights/.records/NAME     the checksum of the first file, where none is published
weights/.locks/NAME       held by the process that fetches
"""

import contextlib
import datetime
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

from fcclip_jax import caching, command_line, files


class Record(NamedTuple):
    """The checksum of the file that a name stood for when it was first used."""

    sha256: str
    date: str
    """Year, month and day, of UTC."""


def root() -> pathlib.Path:
    return caching.cache_dir().absolute() / "weights"


def folder(name: str) -> pathlib.Path:
    """Returns the directory of a converted checkpoint, which exists only if it is complete."""
    return root() / name


def downloads(name: str) -> pathlib.Path:
    return root() / ".downloads" / name


def record_of(name: str) -> pathlib.Path:
    return root() / ".records" / f"{name}.json"


def read_record(name: str) -> Record | None:
    """Returns the record, or None if there is none.

    Raises:
        ValueError: its file is damaged.
    """
    path = record_of(name)
    if not path.exists():
        return None
    try:
        return Record(**json.loads(path.read_text("utf-8")))
    except (TypeError, ValueError):
        raise ValueError(f"{path} is not a record of a checksum; delete it to record the next file's") from None


def write_record(name: str, sha256: str) -> None:
    record = Record(sha256, datetime.datetime.now(datetime.UTC).date().isoformat())
    files.write_files({record_of(name): json.dumps(record._asdict()).encode()})


def say(message: str) -> None:
    """Prints a line on stderr: weights are also fetched inside programs, whose stdout is their own."""
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def one_process_at_once(name: str, manual: str) -> Iterator[None]:
    """Waits while another process fetches the same weights.

    manual: how to get them by hand, for the error.

    Raises:
        ValueError: filelock is not installed.
        OSError: the cache folder cannot be written.
    """
    filelock = command_line.import_package("filelock", "fetching weights", manual)
    files.check_writable(root(), f"the cache folder {root()}")
    path = root() / ".locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        say(f"waiting for another process, which fetches {name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
