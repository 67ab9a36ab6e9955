"""The log of an evaluation: each image's counts are written as soon as it is scored, so that a killed evaluation resumes.

    evaluation.json      the model, the data and the settings; any other evaluation is refused
    images/*.jsonl       a line for each image, in one file for each process that has taken part

Sums are formed at the end, over the lines in the images' order. They do not depend on which process wrote a line, or when.
"""

import pathlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from fcclip_jax.work_log import Line, WorkLog

__all__ = ["EvaluationLog", "Line"]


class EvaluationLog:
    """The log of one evaluation, by the images' places in the dataset: a line's "index"."""

    def __init__(self, folder: pathlib.Path, about: Mapping[str, Any]):
        """Creates the folder, or checks that it belongs to the same evaluation.

        about: everything that the results depend on, in values that JSON can represent.

        Raises:
            ValueError: the folder contains another evaluation.
            OSError: the folder cannot be written.
        """
        self._log = WorkLog(
            folder / "evaluation.json",
            folder / "images",
            about,
            key="index",
            found=f"{folder} has an evaluation",
            otherwise="give another --workdir, or remove that folder",
        )

    def read(self) -> dict[int, Line]:
        """Returns all lines by their images' places. Incomplete lines of killed processes are skipped.

        Raises:
            ValueError: a line is damaged.
        """
        lines: dict[int, Line] = {}
        for line in self._log.read():
            lines.setdefault(line["index"], line)
        return dict(sorted(lines.items()))

    def writer(self) -> AbstractContextManager[Callable[[Line], None]]:
        """See `WorkLog.writer`."""
        return self._log.writer()
