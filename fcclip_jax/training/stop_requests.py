"""A run that is asked to stop saves first: on one process by SIGTERM, on several by JAX's preemption service."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Catches SIGTERM in the block. Yields a function of the step that returns whether the run should stop after it.

    All processes get the same answer for a step.
    """
    if jax.process_count() > 1:
        # JAX's own service catches the signal, and agrees on a step at which all processes can stop.
        yield multihost_utils.reached_preemption_sync_point
        return
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
