"""A training run's folder: the names in it, and the model at any of its checkpoints.

    WORKDIR/config.json         the configuration
    WORKDIR/start/              the model before training, a checkpoint as `checkpoint.save` writes it
    WORKDIR/checkpoints/STEP/   the training state (orbax): state/ and about/; metrics/, if validation measured any
    WORKDIR/final/              the trained model
    WORKDIR/examples/           images that were made up, if a configuration asks for them (data.examples)

Frozen weights are stored once, in `start`. This module imports nothing of the train extra, so that conversion can read a
run wherever the core is installed.
"""

import contextlib
import gc
import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from fcclip_jax import checkpoint
from fcclip_jax.checkpoint import Checkpoint

Read = TypeVar("Read")

CONFIG = "config.json"
START = "start"
CHECKPOINTS = "checkpoints"
FINAL = "final"
EXAMPLES = "examples"

QUIET_SECONDS = 2.0
"""Seconds without a report from another read after which a failed restore is over."""
LONGEST_DRAIN_SECONDS = 20.0


def read_model(workdir: str | os.PathLike[str], step: int | Literal["latest", "best"]) -> Checkpoint:
    """Reads a run's model at one of its checkpoints, with averaged parameters where the run keeps an average.

    step: "best" uses the metric by which the run keeps its best checkpoints (`checkpoint.best`).

    Raises:
        FileNotFoundError: `workdir` contains no run, or the run has no such checkpoint.
        ValueError: a file is damaged.
    """
    workdir = checkpoint.resolve(workdir)
    chosen = choose_step(workdir, step)
    start = checkpoint.read(workdir / START)
    with _manager(workdir) as manager:
        try:
            trained = read_quietly(lambda: _read_trained(manager, chosen))
            if unknown := sorted(trained.keys() - start.parameters.keys()):
                raise DamagedRead(f"{unknown[0]} is not in {START}")
        except DamagedRead as error:
            raise ValueError(
                f"the checkpoint {workdir / CHECKPOINTS / str(chosen)} is damaged ({error}); choose another"
            ) from error
    return start._replace(parameters={**start.parameters, **trained})


def choose_step(workdir: str | os.PathLike[str], step: int | Literal["latest", "best"]) -> int:
    """Returns the number of a run's checkpoint: `step`, its latest, or its best as in `read_model`.

    Raises:
        FileNotFoundError: `workdir` contains no run, or the run has no such checkpoint.
    """
    workdir = checkpoint.resolve(workdir)
    if not workdir.exists():
        raise FileNotFoundError(f"the training run {workdir} does not exist; check the path")
    if not (workdir / CHECKPOINTS).is_dir():
        raise FileNotFoundError(f"{workdir} is not the folder of a training run: it has no {CHECKPOINTS}")
    with _manager(workdir) as manager:
        return _choose(workdir, manager, step)


def _manager(workdir: epath.Path) -> contextlib.closing[ocp.CheckpointManager]:
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(create=False)
    return contextlib.closing(ocp.CheckpointManager(workdir / CHECKPOINTS, options=options, item_handlers=handlers))


def _choose(workdir: epath.Path, manager: ocp.CheckpointManager, step: int | Literal["latest", "best"]) -> int:
    steps = sorted(manager.all_steps())
    existing = f"it has {', '.join(map(str, steps))}" if steps else "it has none yet"
    if step == "best":
        metric = json.loads((workdir / CONFIG).read_text("utf-8"))["checkpoint"]["best"]
        best = metric and best_step(manager, metric)
        if best is None:
            raise FileNotFoundError(
                f"no checkpoint of the run in {workdir} was measured, so none is the best; {existing}"
            )
        return best
    if not steps or (step != "latest" and step not in steps):
        raise FileNotFoundError(f"the run in {workdir} has no checkpoint {step}; {existing}")
    return steps[-1] if step == "latest" else step


def _read_trained(manager: ocp.CheckpointManager, step: int) -> dict[str, np.ndarray]:
    tree = manager.item_metadata(step).state.tree
    part = "average" if "average" in tree else "parameters"
    item = {part: tree[part]}
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    found = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True),
            about=ocp.args.JsonRestore(),
        ),
    )
    trained = dict(found.state[part])
    for name, array in trained.items():
        if int(array.view(np.uint32).sum(dtype=np.uint32)) != found.about["check_sums"][f".{part}['{name}']"]:
            raise ValueError(f"the checksum of {name} is wrong")
    return trained


def best_step(manager: ocp.CheckpointManager, metric: str) -> int | None:
    """Returns the latest of the checkpoints with the highest metric; None if none was measured."""
    scores = [(score(metric, manager.metrics(step) or {}), step) for step in manager.all_steps()]
    measured = [pair for pair in scores if pair[0] > -math.inf]
    return max(measured)[1] if measured else None


def score(metric: str, metrics: Mapping[str, float]) -> float:
    """Returns the metric, or minus infinity where it is missing or NaN."""
    value = metrics.get(metric, math.nan)
    return -math.inf if math.isnan(value) else value


def brief(error: Exception) -> str:
    """Returns the beginning of an error's message on one line: orbax' and tensorstore's run over pages."""
    return " ".join(str(error).split()).partition(" See full TensorStore details")[0][:200]


class DamagedRead(Exception):
    """A read failed; the message is one line."""


def read_quietly(read: Callable[[], Read]) -> Read:
    """Returns what `read` returns, or raises one error for it, without a report from each of its many reads.

    Orbax reads arrays concurrently, and closes its event loop at the first failure. The other reads then report their own
    failures through sys.unraisablehook or asyncio's log, from other threads and when they are garbage-collected: thousands
    of lines.

    Raises:
        DamagedRead: `read` raised an error. Tensorstore and orbax have no common type for files that are truncated, missing or
            of another shape.
    """
    previous, reported = sys.unraisablehook, time.monotonic()

    def hook(problem: Any) -> None:
        nonlocal reported
        code = getattr(problem.object, "cr_code", None)
        if str(problem.exc_value) == "Event loop is closed" or (code and "orbax" in code.co_filename):
            reported = time.monotonic()
        else:
            previous(problem)

    sys.unraisablehook = hook
    log = logging.getLogger("asyncio")
    enabled, log.disabled = not log.disabled, True
    try:
        try:
            return read()
        except Exception as error:  # noqa: BLE001  no common type, as said above
            message = brief(error)
            _release(error)
        # Nothing refers to the other reads any more: they report here, and not after the hook is restored.
        begin = reported = time.monotonic()
        while time.monotonic() - reported < QUIET_SECONDS and time.monotonic() - begin < LONGEST_DRAIN_SECONDS:
            gc.collect()
            time.sleep(0.02)
        raise DamagedRead(message)
    finally:
        sys.unraisablehook = previous
        log.disabled = not enabled


def _release(error: BaseException | None) -> None:
    """Clears the frames that an error, its causes and its contexts hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        following = error.__cause__ or error.__context__
        error.__traceback__ = error.__cause__ = error.__context__ = None
        error = following
