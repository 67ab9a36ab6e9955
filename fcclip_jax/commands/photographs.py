"""Finds the photographs that the command line names."""

import glob
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fcclip_jax import files
from fcclip_jax.conventions import IMAGE_SUFFIXES

RUN_FOLDER, RUN_RECORD = ".run", "run.json"
"""Below the output: the record of the settings, and a line for each photograph in *.jsonl."""
MOST_KINDS = 5
"""Kinds of files passed over that are named; the rest are counted together."""


class Found(NamedTuple):
    """The photographs that the command line names, and what is beside them."""

    paths: list[pathlib.Path]
    passed_over: Counter[str]
    """The number of other files, by their suffix in lower case; "" if they have none."""
    unreadable: list[str]
    """Folders that cannot be listed."""

    @property
    def remark(self) -> str:
        """Sentences about what was passed over, each with a space before it; empty if nothing was."""
        text, count = "", self.passed_over.total()
        if count:
            kinds = [
                f"{number} {suffix or 'without a suffix'}"
                for suffix, number in self.passed_over.most_common(MOST_KINDS)
            ]
            if rest := count - sum(number for _, number in self.passed_over.most_common(MOST_KINDS)):
                kinds.append(f"{rest} others")
            files_were = "file that is not an image was" if count == 1 else "files that are not images were"
            text += f" {count} {files_were} passed over ({', '.join(kinds)})."
        if self.unreadable:
            folders_were = "folder" if len(self.unreadable) == 1 else "folders"
            text += (
                f" {len(self.unreadable)} {folders_were} could not be read ({', '.join(self.unreadable[:MOST_KINDS])})."
            )
        return text


def find_photos(given: Sequence[str], *, output: pathlib.Path) -> Found:
    """Finds files, the images in folders (sorted, at any depth), and the images that patterns match; each file once.

    Links to folders are followed, once each. Files and folders whose names begin with a dot do not count.

    output: the folder of results; what a run wrote to it, or to another such folder, is neither a photograph nor passed over.

    Raises:
        ValueError: a folder has no images, a pattern matches none, or a name is empty.
        FileNotFoundError: a file does not exist.
    """
    found, others, unreadable = {}, {}, []
    for name in given:
        if not name:
            raise ValueError("the name of a photograph is empty; name a file or a folder, or . for this one")
        path, any_image = pathlib.Path(name), False
        if path.is_dir():
            candidates = sorted(_inside(path, output, unreadable))
        elif path.exists():
            found.setdefault(os.path.realpath(path), path)  # also if its suffix is not an image's
            continue
        elif glob.has_magic(name):
            candidates = sorted(file for file in _matches(name, unreadable) if not file.is_dir())
        else:
            raise FileNotFoundError(f"no photograph or folder exists at {name}")
        for file in candidates:
            is_image = file.suffix.lower() in IMAGE_SUFFIXES
            any_image |= is_image
            (found if is_image else others).setdefault(os.path.realpath(file), file)
        if not any_image:
            raise ValueError(f"{name} has no images; their names end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    passed_over = Counter(file.suffix.lower() for real, file in others.items() if real not in found)
    return Found(list(found.values()), passed_over, unreadable)


def _matches(pattern: str, unreadable: list[str]) -> Iterator[pathlib.Path]:
    """Yields what a pattern matches; unlike glob, it ends where links to folders form a loop."""
    before, recursive, after = _split(pattern)
    if not recursive:
        yield from map(pathlib.Path, glob.iglob(pattern))
        return
    for base in glob.glob(before) if before else ["."]:
        for folder, _ in files.walk(base, lambda error: unreadable.append(str(error.filename))):
            yield from _matches(os.path.join(glob.escape(str(folder)), after or "*"), unreadable)


def _split(pattern: str) -> tuple[str, bool, str]:
    """Splits a pattern at its first **."""
    parts = pathlib.Path(pattern).parts
    if "**" not in parts:
        return pattern, False, ""
    place = parts.index("**")
    before, after = parts[:place], parts[place + 1 :]
    return os.path.join(*before) if before else "", True, os.path.join(*after) if after else ""


def _inside(folder: pathlib.Path, output: pathlib.Path, unreadable: list[str]) -> Iterator[pathlib.Path]:
    """Yields the files below a folder, except the results of earlier runs."""
    outputs = {os.path.realpath(output)}
    for path, names in files.walk(folder, lambda error: unreadable.append(str(error.filename))):
        real = os.path.realpath(path)
        if os.path.exists(os.path.join(real, RUN_FOLDER, RUN_RECORD)):
            outputs.add(real)
        parent, own_name = os.path.split(real)
        if parent in outputs and own_name in ("overlays", "panoptic", "semantic"):
            continue
        for name in names:
            # The jsons of results are among the photographs if the output is their folder.
            if real not in outputs or not os.path.splitext(name)[1].lower().startswith(".json"):
                yield pathlib.Path(path) / name
