"""A failed read of a run's folder does not change the process."""

import sys
import threading
import time
import types

import pytest

from fcclip_jax.training.run_folder import one_failure


def test_other_reads_report_nothing_and_the_hook_is_restored(monkeypatch):
    """A thread reports 0.1 s after the failure, as a read in flight does, and then something else."""
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)

    def report() -> None:
        time.sleep(0.1)
        for message in ("Event loop is closed", "another fault"):
            sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(message)))

    thread = threading.Thread(target=report)
    with pytest.raises(ValueError, match="is truncated"), one_failure():
        thread.start()
        raise ValueError("the file is truncated")
    thread.join()
    assert [str(problem.exc_value) for problem in reported] == ["another fault"]
    assert sys.unraisablehook == reported.append


def test_success_restores_the_hook_at_once():
    hook, begin = sys.unraisablehook, time.monotonic()
    with one_failure():
        assert sys.unraisablehook is not hook
    assert sys.unraisablehook is hook and time.monotonic() - begin < 0.4
