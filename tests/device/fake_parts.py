"""Parts that end in every way, for the tests of the report."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.device.clock import in_time
from tests.device.running import FOLDER, Row


def good(small: bool) -> Iterator[Row]:
    print("not a figure")
    yield {"value": 1.5, "small": small}
    yield {"value": float("nan"), "small": small}


def raises(small: bool) -> Iterator[Row]:
    yield {"value": 2}
    raise RuntimeError("the kernel is wrong")


def slow(small: bool) -> Iterator[Row]:
    """Leaves a process of its own behind, whose id is a figure."""
    yield {"pid": subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid}
    time.sleep(60)


def killed(small: bool) -> Iterator[Row]:
    yield {"value": 3}
    os.kill(os.getpid(), signal.SIGKILL)


def long(small: bool) -> Iterator[Row]:
    """Has a row a second, and does not begin one that would end after the limit."""
    for value in in_time(range(60)):
        time.sleep(1)
        yield {"value": value}


def second_time(small: bool) -> Iterator[Row]:
    """Fails after a row unless it was run before."""
    before = pathlib.Path(os.environ[FOLDER]) / "before"
    yield {"value": 4}
    if not before.exists():
        before.touch()
        raise RuntimeError("the first time")


def garbage(small: bool) -> Iterator[Row]:
    yield {"value": object()}
