"""Finds the photographs that the command line names."""

import glob
import itertools
import pathlib
from collections.abc import Sequence

from fcclip_jax.conventions import IMAGE_SUFFIXES


def find_photos(given: Sequence[str], *, output: pathlib.Path) -> list[pathlib.Path]:
    """Returns files, the images in folders (sorted, at any depth), and the images that patterns match; each file once.

    output: the folder of results; pictures that an earlier run wrote to it are not photographs.

    Raises:
        ValueError: a folder has no images, or a pattern matches none.
        FileNotFoundError: a file does not exist.
    """
    written = {output.resolve() / folder for folder in ("overlays", "panoptic", "semantic")}
    found = itertools.chain.from_iterable(_find(name, written) for name in given)
    unique: dict[pathlib.Path, pathlib.Path] = {}
    for path in found:
        unique.setdefault(path.resolve(), path)
    return list(unique.values())


def _find(name: str, written: set[pathlib.Path]) -> list[pathlib.Path]:
    path = pathlib.Path(name)
    if path.is_dir():
        inside = sorted(path.rglob("*"))
        found = [file for file in inside if not _hidden(file, path) and written.isdisjoint(file.resolve().parents)]
    elif path.exists():
        return [path]
    elif glob.has_magic(name):
        found = [pathlib.Path(match) for match in sorted(glob.glob(name, recursive=True))]
    else:
        raise FileNotFoundError(f"no photograph or folder exists at {name}")
    found = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    if not found:
        raise ValueError(f"{name} has no images; their names end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def _hidden(file: pathlib.Path, folder: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)
