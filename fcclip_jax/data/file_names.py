"""Finds the files that annotations name, however the name is written, and refuses names that could be two files."""

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from etils import epath

from fcclip_jax import files


def list_files(folder: epath.Path, what: str, suffixes: Collection[str] | None = None) -> list[str]:
    """Returns the paths, relative to the folder and sorted, of all files at any depth; hidden files and folders do not count.

    One walk is faster than 100,000 checks whether a file exists.

    what: the files' kind, for the error message.
    suffixes: those of the files that count, in lower case; by default all do.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: a folder cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of {what} {folder} does not exist")
    found = []
    for path, names in files.walk(folder):
        within = path.relative_to(folder).as_posix()
        found += [name if within == "." else f"{within}/{name}" for name in names]
    return sorted(name for name in found if suffixes is None or suffix_of(name) in suffixes)


def suffix_of(name: str) -> str:
    """Returns a file name's suffix in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def stem_of(name: str) -> str:
    """Returns a path without its suffix."""
    return os.path.splitext(name)[0]


class FileNames:
    """The files below a folder, by the names that annotations give them.

    The name that a file has, with its path below the folder, is this file's. Otherwise a name is compared in Unicode's
    composed form, with slashes for backslashes and without "./" and the folder's own name in front. A name without a folder
    may then be that of a file at any depth.
    """

    def __init__(self, folder: epath.Path, paths: Sequence[str], key: Callable[[str], str] = str):
        """paths: of the files, relative to the folder, as `list_files` returns them.
        key: makes the name that a file is found by from its path.
        """
        self.folder = folder
        self._written, self._plain, self._bare = (defaultdict[str, list[str]](list) for _ in range(3))
        for path in paths:
            self._written[key(path)].append(path)
            plain = _plain(key(path))
            self._plain[plain].append(path)
            self._bare[plain.rpartition("/")[2]].append(path)
        where = os.fspath(folder) if "://" in os.fspath(folder) else os.path.abspath(folder)
        self._folder_parts = _plain(where).split("/")

    def find(self, name: str, source: object, *, any_depth: bool = True) -> epath.Path | None:
        """Returns the file of a name, or None if there is none.

        source: what gives the name, which begins the error message.
        any_depth: whether a name without a folder may be that of a file in a subfolder.

        Raises:
            ValueError: several files could be meant.
        """
        within = [plain := _plain(name), *self._without_folder(plain)]
        places = [(self._written, name), *((self._plain, each) for each in within)]
        if any_depth:
            places += [(self._bare, each) for each in within if "/" not in each]
        found = next((names[each] for names, each in places if each in names), [])
        if len(found) > 1:
            alike = len({unicodedata.normalize("NFC", path) for path in found[:2]}) == 1
            first, second = (ascii(path) if alike else path for path in found[:2])
            raise ValueError(
                f"{source} names {name}, which may be {first} or {second} in {self.folder}; write its path below this"
                " folder, or keep one of them"
            )
        return self.folder / found[0] if found else None

    def find_all(self, names: Sequence[str], source: object, owners: Sequence[object]) -> list[epath.Path]:
        """Returns the file of each name.

        owners: the images that the names belong to, for error messages.

        Raises:
            FileNotFoundError: there is no file of a name.
            ValueError: several files could be meant, or two names are of one file.
        """
        found = [self.find(name, source) for name in names]
        if missing := [name for name, path in zip(names, found, strict=True) if path is None]:
            raise FileNotFoundError(
                f"{source} names {missing[0]}, which is not in {self.folder} ({len(missing)} of {len(names)} files are"
                " missing)"
            )
        paths = [path for path in found if path is not None]
        check_apart(paths, owners, source)
        return paths

    def _without_folder(self, plain: str) -> list[str]:
        parts = plain.split("/")
        return ["/".join(parts[k:]) for k in range(1, len(parts)) if parts[:k] == self._folder_parts[-k:]]


def check_apart(paths: Sequence[epath.Path], owners: Sequence[object], source: object) -> None:
    """Raises ValueError if two images have one file; `source` is what pairs them."""
    owner_of: dict[epath.Path, object] = {}
    for path, owner in zip(paths, owners, strict=True):
        if path in owner_of:
            raise ValueError(
                f"{source} has one file, {path}, for the images {owner_of[path]} and {owner}; give each image its own"
            )
        owner_of[path] = owner


def _plain(name: str) -> str:
    return posixpath.normpath(unicodedata.normalize("NFC", name.replace("\\", "/"))).lstrip("/")
