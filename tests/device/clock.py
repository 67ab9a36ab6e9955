"""The time limit of a part, for parts that make many figures: they stop in time, rather than be killed at work."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_end = math.inf


class OutOfTime(Exception):
    """The part has more to do, but its limit is too near."""


def start(seconds: float) -> None:
    """Starts the time limit of this process."""
    global _end
    _end = time.monotonic() + seconds


def in_time(items: Iterable[T]) -> Iterator[T]:
    """Yields the items of a loop as long as another pass like the last one fits into the time limit.

    Raises:
        OutOfTime: it does not fit, but there are more items.
    """
    last = 0.0
    for item in items:
        if time.monotonic() + last > _end:
            raise OutOfTime
        begin = time.monotonic()
        yield item
        last = time.monotonic() - begin
