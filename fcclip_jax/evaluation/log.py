"""The log of an evaluation: each image's counts are written as soon as it is scored, so that a killed evaluation resumes.

    evaluation.json      the model, the data and the settings; any other evaluation is refused
    images/*.jsonl       a line for each image, in one file for each process that has taken part

Sums are formed at the end, over the lines in the images' order. They do not depend on which process wrote a line, or when.
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
"""The numbers of one image (see evaluation.scores); "index" is its place in the dataset."""


class EvaluationLog:
    """The folder of one evaluation."""

    def __init__(self, folder: pathlib.Path, about: Mapping[str, Any]):
        """Creates the folder, or checks that it belongs to the same evaluation.

        about: everything that the results depend on, in values that JSON can represent.

        Raises:
            ValueError: the folder contains another evaluation.
            OSError: the folder cannot be written.
        """
        self._folder = folder / "images"
        record = folder / "evaluation.json"
        about = json.loads(json.dumps(about))
        if record.exists():
            before = _read_record(record)
            # The settings come before checksums, which are less useful to the user.
            for key in sorted({*before, *about}, key=lambda key: (len(str(about.get(key))) == CHECKSUM_LENGTH, key)):
                if before.get(key) != about.get(key):
                    raise ValueError(
                        f"{folder} has an evaluation with {key} = {_short(before.get(key))}, but this one has"
                        f" {_short(about.get(key))}; give another --workdir, or remove that folder"
                    )
        else:
            write_files({record: json.dumps(about, indent=1).encode()})
        self._folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[int, Line]:
        """Returns all lines by their images' places. Incomplete lines of killed processes are skipped.

        Raises:
            ValueError: a line is damaged.
        """
        lines: dict[int, Line] = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                for text in file:
                    if text.endswith(b"\n"):
                        try:
                            line = json.loads(text)
                            lines.setdefault(line["index"], line)
                        except (ValueError, KeyError, TypeError):
                            raise ValueError(f"{path} is damaged; remove it to evaluate its images again") from None
        return dict(sorted(lines.items()))

    @contextlib.contextmanager
    def writer(self) -> Iterator[Callable[[Line], None]]:
        """Yields a function that writes a line to disk at once; it raises OSError if the disk is full, for example."""
        # The name is unique, so that no process appends to an incomplete line of a killed one.
        path = self._folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
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
