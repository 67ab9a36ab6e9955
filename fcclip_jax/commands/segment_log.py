"""The log of `fcclip segment`: what is on disk already, so that a repeated command continues instead of starting over."""

import contextlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fcclip_jax import files
from fcclip_jax.commands.photographs import RUN_FOLDER, RUN_RECORD
from fcclip_jax.inference.result_files import JSON_FILES, Entry, Exporter, NamedPhoto, files_of, name_photos
from fcclip_jax.work_log import Line, WorkLog

KEY = "photograph"


FileState = list[int] | None
"""Of a photograph: see `_file_state`."""


@contextlib.contextmanager
def alone(output: pathlib.Path) -> Iterator[None]:
    """Keeps other runs out of the output folder, which is there meanwhile; it stays if it has files at the end.

    Raises:
        ValueError: another run is using it.
    """
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    try:
        with files.locked(output, "fcclip segment"):
            yield
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


class SegmentLog:
    """The photographs of an output folder whose results are complete."""

    def __init__(self, output: pathlib.Path, about: Mapping[str, Any], exporter: Exporter, *, overwrite: bool):
        """Reads the log of an earlier run with the same settings. Nothing is written before the first `record`.

        about: everything that the results depend on but the photographs, in values that JSON can represent.
        exporter: is told of the results that are there.
        overwrite: removes the results of an earlier run instead, whatever its settings.

        Raises:
            ValueError: the folder has results of a run with other settings, or its log is damaged.
        """
        folder = output / RUN_FOLDER
        if overwrite and folder.exists():
            _remove_results(output)
        self._log = WorkLog(
            folder / RUN_RECORD,
            folder,
            about,
            key=KEY,
            found=f"{output} has results",
            otherwise="give another --output, or replace them with --overwrite",
            sole_writer=True,
        )
        self._stack = contextlib.ExitStack()
        self._write: Callable[[Line], None] | None = None
        self._states: dict[pathlib.Path, FileState] = {}
        self._lines = _newest(self._log.read(), folder)
        for path, line in list(self._lines.items()):
            if all(file.exists() for file in exporter.files(line["name"])):
                exporter.keep(Entry(line["image"], line["annotation"], line["instances"]))
            else:
                del self._lines[path]

    def name(self, paths: Sequence[pathlib.Path]) -> list[NamedPhoto]:
        """Returns the photographs' names and ids; those of photographs in the log stay as they are."""
        given = {str(path.resolve()): path for path in paths}
        known = [
            NamedPhoto(given.get(path, pathlib.Path(path)), line["image"]["id"], line["name"])
            for path, line in self._lines.items()
        ]
        return name_photos(paths, known)

    def unfinished(self, photos: Sequence[NamedPhoto]) -> list[NamedPhoto]:
        """Returns the photographs without results, or whose file has changed since."""
        # Results of a file that changes from now on may be of either content, so the next run makes them again.
        self._states = {photo.path: _file_state(photo.path) for photo in photos}
        return [
            photo
            for photo in photos
            if (line := self._lines.get(str(photo.path.resolve()))) is None or line["file"] != self._states[photo.path]
        ]

    def record(self, photo: NamedPhoto, entry: Entry) -> None:
        """Writes down that all files of a photograph that `unfinished` returned are on disk.

        Raises:
            OSError: the log cannot be written.
        """
        if self._write is None:
            self._write = self._stack.enter_context(self._log.writer())
        head = {KEY: str(photo.path.resolve()), "file": self._states[photo.path], "name": photo.name}
        self._write(head | {"time": time.time_ns()} | entry._asdict())

    def close(self) -> None:
        self._stack.close()


def _file_state(path: pathlib.Path) -> FileState:
    """Returns what changes with a file's content: its bytes, and the time of its last change in nanoseconds.

    It is None for a file that is gone, whose reading reports that.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _is_complete(line: Any) -> bool:
    """Returns whether a line has all that `SegmentLog.record` writes."""
    match line:
        case {
            "photograph": str(),
            "file": None | [int(), int()],
            "name": str(name),
            "time": int(),
            "image": {"id": int()},
            "annotation": _,
            "instances": [*_],
        }:
            return pathlib.PurePath(name).name == name  # so that --overwrite removes nothing outside the output
    return False


def _newest(lines: Iterator[Line], folder: pathlib.Path) -> dict[str, Line]:
    """Returns the newest line of each photograph, in the order of their ids.

    Raises:
        ValueError: a line in this folder is damaged, or of another version.
    """
    newest: dict[str, Line] = {}
    for line in lines:
        if not _is_complete(line):
            raise ValueError(
                f"the log in {folder} has a line that describes no photograph; give another --output, or replace the results"
                " with --overwrite"
            )
        path = line[KEY]
        if path not in newest or line["time"] > newest[path]["time"]:
            newest[path] = line
    return dict(sorted(newest.items(), key=lambda item: item[1]["image"]["id"]))


def _remove_results(output: pathlib.Path) -> None:
    """Removes the files that the log of an earlier run lists, whatever its tasks were, and the log."""
    for path in (output / RUN_FOLDER).glob("*.jsonl"):
        for text in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # damaged lines are replaced too
                if _is_complete(line := json.loads(text)):
                    for file in files_of(output, line["name"]):
                        file.unlink(missing_ok=True)
    for name in JSON_FILES:
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / RUN_FOLDER)
