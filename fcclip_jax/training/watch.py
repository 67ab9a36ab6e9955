"""Watches a run: progress, measurements, and losses that are not finite."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from fcclip_jax import progress
from fcclip_jax.process_memory import peak_memory
from fcclip_jax.training.run_log import RunLog


@runtime_checkable
class Metrics(Protocol):
    """A step's measurements."""

    loss: Any
    gradient_norm: Any
    gradient_squares: Any
    """Each parameter's sum of squared gradients, in the order of sorted names."""

    def losses(self) -> dict[str, float]:
        """Returns the losses by the names that messages give them."""
        ...

    def measurements(self) -> dict[str, float]:
        """Returns what the log shows."""
        ...


class Watch:
    """Checks and reports every step's losses, one step behind the device, so that the device never waits for it."""

    def __init__(self, log: RunLog, names: list[str], first: int, steps: int, every: int):
        """Reports a run of `steps` steps from step `first`, and logs every `every`-th.

        names: the trained parameters, sorted.
        """
        self._log, self._names, self._every = log, names, every
        self._pending: tuple[int, Metrics] | None = None
        self._waited, self._steps, self._since = 0.0, 0, time.perf_counter()
        self.skipped = 0
        self.over_budget: int | None = None
        self._progress = progress.track(
            desc="training", total=steps, initial=first, unit="step", disable=jax.process_index() > 0
        )

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the time in the block as time that the device waits for data."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def add(self, step: int, metrics: Metrics, skipped: tuple[str, ...], over_budget: int | None = None) -> None:
        """Takes a step that has been dispatched, and checks the one before it.

        skipped: the reasons why images were skipped for this step's batch.
        over_budget: the number of segments that were left out of the batch; None if it has no segments.

        Raises:
            ValueError: a loss or a gradient of the step before is not finite.
        """
        for reason in skipped:
            progress.write(f"skipped an image: {reason}", file=sys.stderr)
        self.skipped += len(skipped)
        if over_budget is not None:
            self.over_budget = (self.over_budget or 0) + over_budget
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Checks and reports the latest step, once it is done.

        Raises:
            ValueError: a loss or a gradient is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = jax.device_get(metrics)
        check_finite(step, values, self._names)
        self._steps += 1
        self._progress.update()
        if step % self._every == 0:
            self._write(step, values)

    def report(self, step: int, scores: Mapping[str, float]) -> None:
        """Logs and prints a validation's scores."""
        for name, value in scores.items():
            self._log.measure(name, value)
        self._log.write(step)
        progress.write(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))

    def close(self) -> None:
        self._progress.close()

    def _write(self, step: int, values: Metrics) -> None:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        rate, waiting = self._steps / seconds, self._waited / seconds
        self._waited, self._steps = 0.0, 0
        measured = {
            **values.measurements(),
            "steps_per_second": rate,
            "data_wait_share": waiting,
            "memory_gib": _peak_memory() / 2**30,
            "skipped_images": self.skipped,
        }
        if self.over_budget is not None:
            measured["segments_over_budget"] = self.over_budget
        for name, value in measured.items():
            self._log.measure(f"train/{name}", float(value))
        self._log.write(step)
        self._progress.set_postfix_str(
            f"loss {values.loss:.2f}, gradient {values.gradient_norm:.3g}, data wait {waiting:.0%}", refresh=False
        )


def check_finite(step: int, values: Metrics, names: list[str]) -> None:
    """Checks that every loss and gradient of a step is finite.

    names: the trained parameters, sorted.

    Raises:
        ValueError: the first loss and the first parameter's gradient that are not.
    """
    losses = [name for name, loss in values.losses().items() if not np.isfinite(loss)]
    gradients = [names[i] for i in np.flatnonzero(~np.isfinite(values.gradient_squares))]
    if not losses and not gradients and np.isfinite(values.loss):
        return
    loss = f"the loss {losses[0]} is not finite" if losses else "the losses are finite"
    gradient = (
        f"the gradient of {gradients[0]} is not (first of {len(gradients)})" if gradients else "the gradients are"
    )
    joint = ", and " if bool(losses) == bool(gradients) else ", but "
    raise ValueError(
        f"training stopped at step {step}: {loss}{joint}{gradient}; the earlier checkpoints are intact: lower"
        " optim.learning_rate, or compute in float32 (compute_dtype)"
    )


def announce(line: str) -> None:
    """Prints a line above the progress bar, once for all processes."""
    if jax.process_index() == 0:
        progress.write(line)


def _peak_memory() -> int:
    """Returns bytes: the first device's peak where it reports one, else this process's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", peak_memory())
