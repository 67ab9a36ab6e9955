"""A run's training states: written in the background, named by their step, read on any mesh.

`run_folder` describes the files.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from fcclip_jax.training.run_folder import CHECKPOINTS, DamagedRead, best_step, brief, read_quietly, score
from fcclip_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, workdir: str | os.PathLike[str], *, keep_last: int, keep_best: int, best: str | None):
        """Keeps the `keep_last` latest, and the `keep_best` for which the metric `best` was highest."""
        if keep_last < 1:
            raise ValueError(
                f"checkpoint.keep_last is {keep_last}; a run needs at least its latest checkpoint to resume"
            )
        self.folder = epath.Path(workdir) / CHECKPOINTS
        self._best = best
        kept = [policies.LatestN(keep_last)]
        get_score = functools.partial(score, best)
        if best and keep_best:
            kept.append(policies.BestN(get_metric_fn=get_score, n=keep_best, keep_checkpoints_without_metrics=False))
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                # Without it orbax writes no metrics, and a resumed run has no best checkpoint.
                best_fn=get_score if best else None,
                cleanup_tmp_directories=True,
            ),
            item_names=("state", "about"),
        )

    @property
    def latest(self) -> int | None:
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step with the highest metric, among checkpoints that are completely written."""
        return best_step(self._manager, self._best) if self._best else None

    def save(self, state: TrainState, about: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Copies the state to the host and returns. The files are written in the background, and appear all at once.

        about: JSON that `read_about` returns.

        Raises:
            OSError: this checkpoint, or the one before it, cannot be written.
        """
        step = int(state.step)
        if step == self.latest:
            return
        sums = dict(zip(_names(state), map(int, jax.device_get(checksums(state))), strict=True))
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_as_tree(state)),
                    about=ocp.args.JsonSave({**about, "check_sums": sums}),
                ),
                metrics=dict(metrics or {}),
            )

    def wait(self) -> None:
        """Waits until all saved checkpoints are on disk. Raises OSError if one cannot be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def read_about(self, step: int) -> dict[str, Any]:
        """Returns the `about` that `save` received. Raises ValueError if the checkpoint is damaged."""
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about)
        except Exception as error:
            raise self._damaged(step, error) from error

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Returns the state, with the shapes and shardings of `like`, whose leaves are arrays or ShapeDtypeStructs.

        Raises:
            ValueError: the checkpoint is damaged, or belongs to another model.
        """
        sums = self.read_about(step)["check_sums"]
        names = _names(like)
        if set(names) != set(sums):
            other = sorted(set(names) ^ set(sums))
            raise ValueError(
                f"the checkpoint {self.folder / str(step)} belongs to another model or optimiser: {len(other)} arrays"
                f" differ, such as {other[0]}; give the configuration that it was trained with, or another workdir"
            )
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_as_tree(abstract)))
        try:
            restored = read_quietly(lambda: self._manager.restore(step, args=args).state)
        except DamagedRead as error:
            raise self._damaged(step, error) from error
        state = TrainState(**{**restored, "average": restored.get("average")})
        found = map(int, jax.device_get(checksums(state)))
        wrong = [name for name, value in zip(names, found, strict=True) if value != sums[name]]
        if wrong:
            raise self._damaged(step, ValueError(f"the checksum of {wrong[0]} is wrong"))
        return state

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # Orbax and tensorstore have no common error for what the file system refuses.
        except Exception as error:
            raise OSError(
                f"a checkpoint in {self.folder} cannot be written: {brief(error)}; free some space and run the same"
                " command: it resumes from the checkpoint before"
            ) from error

    def _damaged(self, step: int, error: Exception) -> ValueError:
        before = max((other for other in self._manager.all_steps() if other < step), default=None)
        rest = "start from the beginning" if before is None else f"resume from step {before}"
        return ValueError(
            f"the checkpoint {self.folder / str(step)} is damaged ({brief(error)}); remove that folder to {rest}"
        )


@jax.jit
def checksums(state: TrainState) -> list[jax.Array]:
    """Returns each array's sum of its bits read as 32-bit integers, which does not depend on the sharding."""

    def checksum(x: jax.Array) -> jax.Array:
        return jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32), dtype=jnp.uint32)

    return [checksum(leaf) for leaf in jax.tree.leaves(state)]


def _names(state: TrainState) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def _as_tree(state: TrainState) -> dict[str, PyTree]:
    tree = state._asdict()
    if state.average is None:
        del tree["average"]
    return tree
