"""Progress of long work: a bar on a terminal, a line now and then in a log file.

A bar rewrites its line with carriage returns, which makes one endless line of a log. There, progress is a line at every
tenth of the work, and once a minute while nothing else is reported.
"""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeAlias, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

MINUTE = 60.0
"""Seconds without a line after which one is written."""
BRIEF, BRIEF_PART = 1.0, 10.0
"""Seconds before the first line, for some work and for a part of a larger one: what is over by then needs no report."""


class Lines(Generic[Item]):
    """Progress in lines, for files and pipes."""

    def __init__(self, items: Iterable[Item] | None, desc: str, *, total: int, initial: int, unit: str, silent: float):
        """silent: the seconds before the first line."""
        self._items, self._desc, self._total, self._unit = items, desc, total, unit
        self._done, self._tenth, self._postfix = initial, 10 * initial // max(total, 1), ""
        self._file, self._silent = sys.stderr, silent
        self._start = self._latest = time.monotonic()
        self._lock, self._closed = threading.Lock(), threading.Event()
        # Work that hangs or compiles calls nothing.
        self._clock = threading.Thread(target=self._tick, name=f"progress of {desc}", daemon=True)
        self._clock.start()

    def __iter__(self) -> Iterator[Item]:
        assert self._items is not None
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> "Lines[Item]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        with self._lock:
            self._done += count
            tenth = 10 * self._done // max(self._total, 1)
            if tenth > self._tenth and time.monotonic() - self._start >= self._silent:
                self._tenth = tenth
                self._print()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self._postfix = text

    def close(self) -> None:
        self._closed.set()

    def _tick(self) -> None:
        while not self._closed.wait(max(self._latest + MINUTE - time.monotonic(), 0.0)):
            with self._lock:
                if time.monotonic() - self._latest >= MINUTE and not self._closed.is_set():
                    self._print()

    def _print(self) -> None:
        self._latest = time.monotonic()
        share = f"{100 * self._done // max(self._total, 1)} %"
        seconds = round(self._latest - self._start)
        passed = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        counts = f"{self._done} of {self._total} {self._unit}s"
        line = ", ".join(part for part in (f"{self._desc}: {share}", counts, passed, self._postfix) if part)
        print(line, file=self._file, flush=True)


Progress: TypeAlias = tqdm | Lines
"""Has update(count), set_postfix_str(text), close(), and ends with a `with` block or with what it iterates over."""


def track(
    items: Iterable[Item] | None = None,
    desc: str = "",
    *,
    total: int,
    initial: int = 0,
    unit: str = "image",
    leave: bool = True,
    disable: bool = False,
) -> Progress:
    """Reports the progress of some work on stderr, as a bar or in lines.

    items: what to iterate over; without it, `update` counts.
    initial: the units that an earlier run has finished.
    leave: False for a part of a larger work: its bar is removed at the end, and its lines begin later.
    """
    if disable or (sys.stderr is not None and sys.stderr.isatty()):
        return tqdm(items, desc, total=total, initial=initial, unit=f" {unit}s", leave=leave, disable=disable)
    return Lines(items, desc, total=total, initial=initial, unit=unit, silent=BRIEF if leave else BRIEF_PART)


def write(line: str, *, file: Any = None) -> None:
    """Prints a line, above the bars if there are any, to an open file; by default on stdout."""
    tqdm.write(line, file=file or sys.stdout)
