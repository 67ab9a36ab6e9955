"""A run's own checkpoints: whole training states, written in the background, named by their step.

    WORKDIR/start/              the model before training, a checkpoint as `checkpoint.save` writes it
    WORKDIR/checkpoints/STEP/   what training changes (orbax): state/ and about/; metrics/, if any were measured

Frozen weights are in `start` once and for all. Any mesh reads what any other has written.
"""

import contextlib
import functools
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from fcclip_jax import checkpoint
from fcclip_jax.checkpoint import Checkpoint
from fcclip_jax.training.run_log import CONFIG
from fcclip_jax.training.step import TrainState

FOLDER = "checkpoints"
START = "start"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, workdir: str | os.PathLike[str], *, keep_last: int, keep_best: int, best: str | None):
        """Keeps the `keep_last` latest, and the `keep_best` for which the metric `best` was highest."""
        if keep_last < 1:
            raise ValueError(
                f"checkpoint.keep_last is {keep_last}; a run needs at least its latest checkpoint to go on"
            )
        self.folder = epath.Path(workdir) / FOLDER
        self._best = best
        kept = [policies.LatestN(keep_last)]
        score = functools.partial(_score, best)
        if best and keep_best:
            kept.append(policies.BestN(get_metric_fn=score, n=keep_best, keep_checkpoints_without_metrics=False))
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                best_fn=score
                if best
                else None,  # without it, metrics are not written: a resumed run would forget its best
                cleanup_tmp_directories=True,
            ),
            item_names=("state", "about"),
        )

    @property
    def latest(self) -> int | None:
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Of those that were measured, and are whole by now."""
        return self._best and _best_of(self._manager, self._best)

    def save(self, state: TrainState, about: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Copies the state to the host and returns; the files are written meanwhile, and appear when all are there.

        about: JSON that `read_about` gives back.
        """
        step = int(state.step)
        if step == self.latest:
            return
        sums = dict(zip(_names(state), map(int, jax.device_get(check_sums(state))), strict=True))
        with self._trouble_reported():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_as_tree(state)),
                    about=ocp.args.JsonSave({**about, "check_sums": sums}),
                ),
                metrics=dict(metrics or {}),
            )

    def wait(self) -> None:
        """Until what was saved is on disk. Raises OSError, as `save` does, if it cannot be written."""
        with self._trouble_reported():
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def read_about(self, step: int) -> dict[str, Any]:
        """What `save` was told. Raises ValueError as `restore`."""
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about)
        except Exception as error:
            raise self._damaged(step, error) from error

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state, with the shapes and shardings of `like` (arrays, or descriptions of some).

        Raises:
            ValueError: the checkpoint is damaged, or is that of another model.
        """
        sums = self.read_about(step)["check_sums"]
        names = _names(like)
        if set(names) != set(sums):
            other = sorted(set(names) ^ set(sums))
            raise ValueError(
                f"the checkpoint {self.folder / str(step)} is that of another model or optimiser: {len(other)} arrays"
                f" differ, such as {other[0]}; give the configuration that it was trained with, or another workdir"
            )
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            with _failing_once():
                restored = self._manager.restore(
                    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_as_tree(abstract)))
                ).state
        # Tensorstore and orbax have no common error for files that are cut short, missing or of another shape.
        except Exception as error:
            raise self._damaged(step, error) from error
        state = TrainState(**{**restored, "average": restored.get("average")})
        found = map(int, jax.device_get(check_sums(state)))
        wrong = [name for name, value in zip(names, found, strict=True) if value != sums[name]]
        if wrong:
            raise self._damaged(step, ValueError(f"{wrong[0]} is not what was saved"))
        return state

    @contextlib.contextmanager
    def _trouble_reported(self) -> Iterator[None]:
        try:
            yield
        # Of the threads that write: whatever orbax and tensorstore make of what the file system says.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise OSError(
                f"a checkpoint in {self.folder} cannot be written: {reason}; free some space and run the same command: it"
                " goes on from the checkpoint before"
            ) from error

    def _damaged(self, step: int, error: Exception) -> ValueError:
        before = max((other for other in self._manager.all_steps() if other < step), default=None)
        rest = "start from the beginning" if before is None else f"resume from step {before}"
        reason = " ".join(str(error).split())[:200]
        return ValueError(
            f"the checkpoint {self.folder / str(step)} is damaged ({reason}); remove that folder to {rest}"
        )


def read_model(workdir: str | os.PathLike[str], step: int | Literal["latest", "best"]) -> Checkpoint:
    """The model of a run as it was at one of its checkpoints, with averaged parameters if there are such.

    step: "best" is by the metric that the run keeps its best checkpoints by (`checkpoint.best`).

    Raises:
        FileNotFoundError: there is no run there, or no such checkpoint.
        ValueError: a file is damaged.
    """
    workdir = checkpoint.resolve(workdir)
    folder = workdir / FOLDER
    if not folder.is_dir():
        raise FileNotFoundError(f"{workdir} is not the folder of a training run: it has no {FOLDER}")
    start = checkpoint.read(workdir / START)
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(create=False)
    with contextlib.closing(ocp.CheckpointManager(folder, options=options, item_handlers=handlers)) as manager:
        chosen = _choose(workdir, manager, step)
        try:
            with _failing_once():
                trained = _read_trained(manager, chosen)
            if unknown := sorted(trained.keys() - start.parameters.keys()):
                raise ValueError(f"{unknown[0]} is not in {START}")
        # Tensorstore and orbax have no common error for files that are cut short or missing.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"the checkpoint {folder / str(chosen)} is damaged ({reason}); choose another") from error
    return start._replace(parameters={**start.parameters, **trained})


def _choose(workdir: epath.Path, manager: ocp.CheckpointManager, step: int | Literal["latest", "best"]) -> int:
    steps = sorted(manager.all_steps())
    there = f"it has {', '.join(map(str, steps))}" if steps else "it has none yet"
    if step == "best":
        metric = json.loads((workdir / CONFIG).read_text())["checkpoint"]["best"]
        best = metric and _best_of(manager, metric)
        if best is None:
            raise FileNotFoundError(f"no checkpoint of the run in {workdir} was measured, so none is the best; {there}")
        return best
    if not steps or (step != "latest" and step not in steps):
        raise FileNotFoundError(f"the run in {workdir} has no checkpoint {step}; {there}")
    return steps[-1] if step == "latest" else step


def _read_trained(manager: ocp.CheckpointManager, step: int) -> dict[str, np.ndarray]:
    tree = manager.item_metadata(step).state.tree
    part = "average" if "average" in tree else "parameters"
    item = {part: tree[part]}
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    found = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True),
            about=ocp.args.JsonRestore(),
        ),
    )
    trained = dict(found.state[part])
    for name, array in trained.items():
        if int(array.view(np.uint32).sum(dtype=np.uint32)) != found.about["check_sums"][f".{part}['{name}']"]:
            raise ValueError(f"{name} is not what was saved")
    return trained


def _best_of(manager: ocp.CheckpointManager, metric: str) -> int | None:
    """The last of those for which the metric is highest."""
    scores = [(_score(metric, manager.metrics(step) or {}), step) for step in manager.all_steps()]
    measured = [pair for pair in scores if pair[0] > -math.inf]
    return max(measured)[1] if measured else None


def _score(metric: str, metrics: Mapping[str, float]) -> float:
    value = metrics.get(metric, math.nan)
    return -math.inf if math.isnan(value) else value


@jax.jit
def check_sums(state: TrainState) -> list[jax.Array]:
    """Of each array, the sum of its bits read as 32-bit integers: the same however it is sharded."""

    def check_sum(x: jax.Array) -> jax.Array:
        return jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32), dtype=jnp.uint32)

    return [check_sum(leaf) for leaf in jax.tree.leaves(state)]


@contextlib.contextmanager
def _failing_once() -> Iterator[None]:
    """When a read fails, those that are still under way find their event loop gone, and report that: nobody's concern."""
    report = sys.unraisablehook

    def report_others(problem: Any) -> None:
        if str(problem.exc_value) != "Event loop is closed":
            report(problem)

    # Before the first read, since the threads of the others report before this one knows that it has failed.
    sys.unraisablehook = report_others
    yield
    sys.unraisablehook = report  # after a failure, what is under way goes on for a while


def _names(state: TrainState) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def _as_tree(state: TrainState) -> dict[str, PyTree]:
    tree = state._asdict()
    if state.average is None:
        del tree["average"]
    return tree
