"""The process's memory: its peak, and what the C library holds without need."""

import contextlib
import ctypes
import pathlib
import re
import sys


def reset_peak_memory() -> None:
    """Resets `peak_memory` to the memory in use now, on Linux. Elsewhere the peak counts from the start of the process."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak_memory() -> int:
    """Returns the most memory that this process has held, in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        status = pathlib.Path("/proc/self/status").read_text("ascii", "replace")
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def ran_out(error: BaseException) -> bool:
    """Returns whether an error says that memory ran out, on the host or on a device."""
    # RESOURCE_EXHAUSTED is XLA's error for a failed allocation.
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))


def return_free_memory() -> None:
    """Returns memory that is free, but that the C library keeps for later, to the system (only glibc can).

    A compilation leaves much of it: that of a training step about 1 GiB.
    """
    # Elsewhere, there is no such function, or no library without a name.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
