"""Measures the time and memory of programs ready to run."""

import contextlib
import ctypes
import pathlib
import re
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

FORWARD, BOTH = "forward", "forward + backward"
TORCH = "torch"
MIB = 2**20


class Case(NamedTuple):
    """One program, ready to run."""

    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    """Waits for the result of `call`, which an accelerator may still be computing."""
    compile_seconds: float | None
    peak_memory: int | None
    """In bytes."""


def measure_peak(run: Callable[[], Any]) -> tuple[Any, int | None]:
    """Returns the result of `run`, and the most bytes that this process held during it beyond those held before.

    The bytes are None outside Linux. They do not include an accelerator's memory.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # otherwise malloc reuses memory freed earlier, which does not count
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5", "ascii")
        before = _process_memory("VmRSS")
        result = run()
        return result, _process_memory("VmHWM") - before
    except OSError:
        return run(), None


def _process_memory(field: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text("ascii", "replace")
    return int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) * 1024


def medians(cases: dict[tuple[str, str], Case], repeats: int) -> dict[tuple[str, str], float]:
    """Returns the median seconds of `repeats` calls after a first one; the cases of each pass run in turns."""
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in cases}
    for which in (FORWARD, BOTH):
        rivals = {key: case for key, case in cases.items() if key[0] == which}
        for _ in range(repeats + 1):
            for key, case in rivals.items():
                seconds[key].append(_seconds_of(case))
    return {key: statistics.median(times[1:]) for key, times in seconds.items()}


def _seconds_of(case: Case) -> float:
    # On an accelerator, ten calls in a row hide the host's part of a call.
    calls = 1 if jax.default_backend() == "cpu" else 10
    time.sleep(0.02)  # lets the threads of the previous case stop spinning
    start = time.perf_counter()
    for _ in range(calls):
        result = case.call()
    case.wait(result)
    return (time.perf_counter() - start) / calls
