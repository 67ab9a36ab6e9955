"""A run that is asked to stop saves first: on one process by SIGTERM or Ctrl-C, on several by JAX's preemption service."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Catches SIGTERM and the first Ctrl-C in the block. Yields a function of the step that returns whether to stop after it.

    A second Ctrl-C stops at once. All processes get the same answer for a step. In a thread, which Python sends no signals, no
    stop is ever requested.

    Raises:
        KeyboardInterrupt: at the end of the block, if Ctrl-C ended it.
    """
    if jax.process_count() > 1:
        # JAX's own service catches SIGTERM, and agrees on a step at which all processes can stop.
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def request(number: int, frame: object) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT] or signal.default_int_handler)

    for number in before:
        signal.signal(number, request)
    try:
        yield lambda step: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    if signal.SIGINT in received:
        raise KeyboardInterrupt
