"""A run's own checkpoints: whole training states, written in the background, named by their step.

    WORKDIR/start/              the model before training, a checkpoint as `checkpoint.save` writes it
    WORKDIR/checkpoints/STEP/   what training changes (orbax): state/ and about/

Frozen weights are in `start` once and for all. Any mesh reads what any other has written.
"""

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from fcclip_jax.train_step import TrainState

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, workdir: str | os.PathLike[str], *, keep_last: int, keep_best: int, best: str | None):
        """Keeps the `keep_last` latest, and the `keep_best` for which the metric `best` was highest."""
        if keep_last < 1:
            raise ValueError(
                f"checkpoint.keep_last is {keep_last}; a run needs at least its latest checkpoint to go on"
            )
        self.folder = epath.Path(workdir) / FOLDER
        kept = [policies.LatestN(keep_last)]
        if best and keep_best:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics.get(best, -math.inf),
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
            ),
            item_names=("state", "about"),
        )

    @property
    def latest(self) -> int | None:
        return self._manager.latest_step()

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
                metrics=metrics and dict(metrics),
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
        hook = sys.unraisablehook
        # Before the first read, since the threads of the others report before this one knows that it has failed.
        sys.unraisablehook = functools.partial(_unless_event_loop_closed, hook)
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_as_tree(abstract)))
            ).state
        # Tensorstore and orbax have no common error for files that are cut short, missing or of another shape.
        except Exception as error:
            raise self._damaged(step, error) from error
        sys.unraisablehook = hook
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


@jax.jit
def check_sums(state: TrainState) -> list[jax.Array]:
    """Of each array, the sum of its bits read as 32-bit integers: the same however it is sharded."""

    def check_sum(x: jax.Array) -> jax.Array:
        return jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32), dtype=jnp.uint32)

    return [check_sum(leaf) for leaf in jax.tree.leaves(state)]


def _unless_event_loop_closed(report: Callable[[Any], None], problem: Any) -> None:
    """Reads that are still under way when another has failed find their event loop gone, which is nobody's concern."""
    if str(problem.exc_value) != "Event loop is closed":
        report(problem)


def _names(state: TrainState) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def _as_tree(state: TrainState) -> dict[str, PyTree]:
    tree = state._asdict()
    if state.average is None:
        del tree["average"]
    return tree
