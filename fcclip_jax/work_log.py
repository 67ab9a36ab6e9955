"""The log of long work on many items: each item's line is written as soon as it is done, so that killed work resumes.

a record (.json)         everything that the results depend on; other work is refused
a folder of *.jsonl      a line for each item, in one file for each process that has taken part
"""

import contextlib
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fcclip_jax.files import write_files

CHECKSUM_LENGTH = 64
"""Hexadecimal digits of SHA-256."""

Line = Mapping[str, Any]
"""What is known about one item, in values that JSON can represent."""


class WorkLog:
    """The log of one piece of work."""

    def __init__(
        self,
        record: pathlib.Path,
        lines: pathlib.Path,
        about: Mapping[str, Any],
        *,
        key: str,
        found: str,
        otherwise: str,
    ):
        """Checks that an earlier record is of the same work. Nothing is written before `writer`.

        record, lines: the file and the folder.
        about: everything that the results depend on, in values that JSON can represent; what matters most to the user first.
        key: the entry of a line that tells its item.
        found: what there is, as the start of a sentence, such as "runs/a has an evaluation".
        otherwise: what to do with other work, as the end of a sentence.

        Raises:
            ValueError: the record is of other work, or damaged.
        """
        self._record, self._lines, self._key = record, lines, key
        self._about = about = json.loads(json.dumps(about))
        if record.exists():
            before = _read_record(record)
            names = [*about, *sorted(before.keys() - about.keys())]
            # In the caller's order, but checksums last: they are less useful to the user.
            for name in sorted(names, key=lambda name: len(str(about.get(name))) == CHECKSUM_LENGTH):
                if before.get(name) != about.get(name):
                    raise ValueError(
                        f"{found} with {name} = {_short(before.get(name))}, but this one has"
                        f" {_short(about.get(name))}; {otherwise}"
                    )

    def read(self) -> Iterator[Line]:
        """Yields all lines: see `read_lines`."""
        return read_lines(self._lines, self._key)

    @contextlib.contextmanager
    def writer(self) -> Iterator[Callable[[Line], None]]:
        """Yields a function that writes a line to disk at once; it raises OSError if the disk is full, for example.

        Raises:
            OSError: the folder cannot be written.
        """
        if not self._record.exists():
            write_files({self._record: json.dumps(self._about, indent=1).encode()})
        self._lines.mkdir(parents=True, exist_ok=True)
        # The name is unique, so that no process appends to an incomplete line of a killed one.
        path = self._lines / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        file = path.open("x", encoding="utf-8")

        def write(line: Line) -> None:
            try:
                file.write(json.dumps(line) + "\n")
                file.flush()
            except OSError as error:
                raise OSError(f"cannot write {path}: {error.strerror}; repeat the command to resume") from error

        try:
            yield write
        finally:
            with contextlib.suppress(OSError):  # `write` flushes every line, and has raised if it could not
                file.close()


def read_lines(folder: pathlib.Path, key: str) -> Iterator[Line]:
    """Yields the lines in a folder, file by file. Incomplete lines of killed processes are skipped.

    key: the entry of a line that tells its item.

    Raises:
        ValueError: a line is damaged.
    """
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            for text in file:
                if text.endswith(b"\n"):
                    yield _parse(text, key, path)


def _parse(text: bytes, key: str, path: pathlib.Path) -> Line:
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not isinstance(line, dict) or key not in line:
        raise ValueError(f"{path} is damaged; remove it, and what it lists is done again")
    return line


def _read_record(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove its folder to start again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged; remove its folder to start again")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
