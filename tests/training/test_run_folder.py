"""A failed read of a run's folder leaves the process as it was, and reports one error."""

import sys
import threading
import time
import types

import pytest

from fcclip_jax.training.run_folder import QUIET_SECONDS, DamagedRead, read_quietly


class Pending:
    def __await__(self):
        yield


async def read_array():
    """Fails when it is garbage-collected, as orbax's coroutines do after their event loop is closed."""
    try:
        await Pending()
    finally:
        raise RuntimeError("while reading an array")


class Held(Exception):
    """Refers to reads that have begun, as the frames of a failed restore do."""


def failing_read():
    reads = [read_array() for _ in range(3)]
    for read in reads:
        read.send(None)
    raise Held("the file is\ntruncated", reads)


def test_other_reads_report_nothing_and_the_hook_is_restored(monkeypatch):
    """Reads report when they are garbage-collected, and a thread 0.1 s after the failure; other faults are reported."""
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    # A file of orbax's: its coroutines are recognised by that.
    code = read_array.__code__.replace(co_filename="/site-packages/orbax/checkpoint/reading.py")
    monkeypatch.setattr(read_array, "__code__", code)

    def report() -> None:
        time.sleep(0.1)
        for message in ("Event loop is closed", "another fault"):
            sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(message), object=None))

    thread = threading.Thread(target=report)
    thread.start()
    with pytest.raises(DamagedRead, match=r"^\('the file is.*truncated'") as caught:
        read_quietly(failing_read)
    thread.join()
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert [str(problem.exc_value) for problem in reported] == ["another fault"]
    assert sys.unraisablehook == reported.append


def test_success_restores_the_hook_at_once():
    hook, begin = sys.unraisablehook, time.monotonic()
    assert read_quietly(lambda: sys.unraisablehook) is not hook
    assert sys.unraisablehook is hook and time.monotonic() - begin < QUIET_SECONDS
