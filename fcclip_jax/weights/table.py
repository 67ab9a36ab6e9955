"""The table of published weights, weights.json.

None of these files has been opened by the authors of this table: a file's keys and shapes are verified when it is converted.
"""

import difflib
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

TABLE = pathlib.Path(__file__).with_name("weights.json")


class Drive(NamedTuple):
    """A file on Google Drive."""

    id: str

    @property
    def page(self) -> str:
        """The page from which a browser downloads the file."""
        return f"https://drive.google.com/file/d/{self.id}/view"


class Hub(NamedTuple):
    """A file of a repository on the Hugging Face hub."""

    repository: str
    revision: str
    file: str

    @property
    def page(self) -> str:
        """The address from which a browser downloads the file."""
        return f"https://huggingface.co/{self.repository}/resolve/{self.revision}/{self.file}"


class Entry(NamedTuple):
    """Published weights."""

    name: str
    title: str
    kind: str
    """fcclip: a whole model. heads_only: a model without CLIP, which `clip` names. clip: a CLIP alone. packaged: a converted
    checkpoint inside this package."""
    model: str
    """OpenCLIP's name of the CLIP model, or a json file with a description."""
    source: Drive | Hub | None
    """None for packaged weights."""
    file: str
    """The file's name. Drive's own name, where it is not known, is replaced by the entry's."""
    size: int | None
    """Bytes, perhaps rounded; None if nobody has reported them."""
    sha256: str | None
    """None if nobody has reported it: the first file's is then recorded, and later files are compared with it."""
    sha256_from: str | None
    licence: str
    page: str
    """Where the authors offer the weights."""
    vocabulary: str | None
    """The classes of the training data, by a shipped vocabulary's name."""
    quick_gelu: bool
    clip: str | None
    """The entry with the CLIP that heads alone need."""
    reported: Mapping[str, Mapping[str, float]]
    """Published scores in percent: by benchmark, then pq, ap or miou."""
    notes: tuple[str, ...]


def entries() -> dict[str, Entry]:
    """Returns all entries by name."""
    return {entry.name: entry for entry in _read(TABLE)[1]}


def method_note() -> str:
    """Returns what the user of any of these models should know about rights in the method."""
    return _read(TABLE)[0]


def entry(name: str) -> Entry:
    """Returns an entry.

    Raises:
        ValueError: the table has no such name.
    """
    known = entries()
    if name not in known:
        raise ValueError(f"no weights have the name {name!r}{did_you_mean(name)}; `fcclip weights` lists the names")
    return known[name]


def did_you_mean(name: str) -> str:
    """Returns a hint at the closest name, or nothing."""
    close = difflib.get_close_matches(name.strip().lower(), entries(), n=1, cutoff=0.75)
    return f" (did you mean {close[0]}?)" if close else ""


@functools.cache
def _read(path: pathlib.Path) -> tuple[str, tuple[Entry, ...]]:
    table = json.loads(path.read_text("utf-8"))
    return table["method"], tuple(map(_entry, table["entries"]))


def _entry(record: Mapping) -> Entry:
    source: Drive | Hub | None = None
    if "drive" in record:
        source = Drive(record["drive"])
    elif "hub" in record:
        source = Hub(record["hub"], record.get("revision", "main"), record["file"])
    return Entry(
        name=record["name"],
        title=record["title"],
        kind=record["kind"],
        model=record["model"],
        source=source,
        file=record["file"],
        size=record.get("size"),
        sha256=record.get("sha256"),
        sha256_from=record.get("sha256_from"),
        licence=record["licence"],
        page=record["page"],
        vocabulary=record.get("vocabulary"),
        quick_gelu=record.get("quick_gelu", False),
        clip=record.get("clip"),
        reported=record["reported"],
        notes=tuple(record["notes"]),
    )
