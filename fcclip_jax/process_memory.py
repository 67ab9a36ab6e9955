"""The most memory that this process has held."""

import contextlib
import pathlib
import re
import resource
import sys


def reset_peak_memory() -> None:
    """Lets `peak_memory` start from what is in use now, on Linux; elsewhere it counts from the start of the process."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """In bytes."""
    with contextlib.suppress(OSError):
        status = pathlib.Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
