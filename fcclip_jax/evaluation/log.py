"""What an evaluation found in each image, on disk as soon as it is known: a killed evaluation goes on where it was.

    evaluation.json      what is evaluated, and how; another evaluation is not mixed into it
    images/*.jsonl       a line for each image, one file for each process that ever took part

Sums are formed at the end, over the lines in the images' order: they do not depend on who made which line, or when.
"""

import contextlib
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fcclip_jax.files import write_files

CHECK_SUM = 64
"""Hexadecimal digits."""

Line = Mapping[str, Any]
"""Of one image; "index" is its place in the data set."""


class EvaluationLog:
    """The folder of one evaluation."""

    def __init__(self, folder: pathlib.Path, about: Mapping[str, Any]):
        """about: what decides the results, as JSON has it.

        Raises:
            ValueError: the folder has another evaluation in it.
        """
        self._folder = folder / "images"
        record = folder / "evaluation.json"
        about = json.loads(json.dumps(about))
        if record.exists():
            before = _read_record(record)
            # What a person set comes before check sums, which say little.
            for key in sorted({*before, *about}, key=lambda key: (len(str(about.get(key))) == CHECK_SUM, key)):
                if before.get(key) != about.get(key):
                    raise ValueError(
                        f"{folder} has an evaluation with {key} = {_short(before.get(key))}, and this one has"
                        f" {_short(about.get(key))}; give another --workdir, or remove that folder"
                    )
        else:
            write_files({record: json.dumps(about, indent=1).encode()})
        self._folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[int, Line]:
        """All lines by their images' places. A line that a kill cut short is as if it were not there.

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
                            raise ValueError(f"{path} is damaged; remove it to evaluate its images anew") from None
        return dict(sorted(lines.items()))

    @contextlib.contextmanager
    def writer(self) -> Iterator[Callable[[Line], None]]:
        """What writes a line at once; it raises OSError if there is no room."""
        # A name that no other process has, dead or alive: nobody writes behind a line that was cut short.
        path = self._folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        file = path.open("x", encoding="utf-8")

        def write(line: Line) -> None:
            try:
                file.write(json.dumps(line) + "\n")
                file.flush()
            except OSError as error:
                raise OSError(f"cannot write {path}: {error.strerror}; the same command goes on from here") from error

        try:
            yield write
        finally:
            with contextlib.suppress(OSError):  # what it has is on disk; what `write` could not write, it said
                file.close()


def _read_record(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove its folder to begin anew") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged; remove its folder to begin anew")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
