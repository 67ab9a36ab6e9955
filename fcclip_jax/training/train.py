"""Training, top to bottom."""

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from fcclip_jax import caching, checkpoint
from fcclip_jax.checkpoint import Checkpoint
from fcclip_jax.data.pipeline import train_batches
from fcclip_jax.data.records import Dataset
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import HeadDescription, ModelDescription
from fcclip_jax.training import sharding
from fcclip_jax.training.config import step_settings
from fcclip_jax.training.run_log import RunLog
from fcclip_jax.training.start import model_description, starting_point, training_classifier
from fcclip_jax.training.states import START, Checkpoints
from fcclip_jax.training.step import (
    StepMetrics,
    TrainState,
    frozen_dtype,
    initial_state,
    is_trainable,
    make_train_step,
    skeleton,
)
from fcclip_jax.training.validate import Validator, on_host

FINAL = "final"
"""Where the trained model is, in the working directory."""


def train(
    config: ConfigDict, workdir: str | os.PathLike[str], source: Dataset, val_source: Dataset | None = None
) -> Checkpoint:
    """Trains in `workdir`, or goes on where a run there was left; returns the trained model, which is in `final` too.

    Section 4.1 of the paper: COCO panoptic, 16 crops of 1024 pixels a step, AdamW at 1e-4 for 368,750 steps; CLIP stays as
    it is, and what trains is the pixel decoder, the mask decoder and void's embedding.

    val_source: what panoptic quality is measured on from time to time, if there is one.

    Raises:
        ValueError, OSError: the configuration, the data or the checkpoints do not allow it, or a loss is not finite.
    """
    settings = step_settings(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch_size(config.batch_size, config.accumulate, mesh)
    workdir = checkpoint.resolve(workdir)
    workdir.mkdir(parents=True, exist_ok=True)

    # The model: CLIP's two towers, and a head that starts from nothing.
    description = model_description(config.model.clip, HeadDescription(**config.model.head))
    start = _start(workdir, config, description, source)
    text = jax.tree.map(
        lambda x: sharding.place(x, sharding.replicated(mesh)),
        training_classifier(start, caching.cache_dir() / "text"),
    )
    model = skeleton(description, settings)
    names = list(named_variables(model))
    trainable = {name: start.parameters[name] for name in names if is_trainable(name, settings.train_trunk)}
    frozen = sharding.place_parameters(
        {name: start.parameters[name].astype(frozen_dtype(name, settings)) for name in names if name not in trainable},
        mesh,
    )

    with contextlib.ExitStack() as stack:
        # The state: fresh, or that of the latest checkpoint.
        state = initial_state(trainable, settings, mesh)
        kept = config.checkpoint
        checkpoints = Checkpoints(workdir, keep_last=kept.keep_last, keep_best=kept.keep_best, best=kept.best)
        stack.callback(checkpoints.close)
        stream = {"images": len(source), "batch_size": config.batch_size, "seed": config.seed, "crop": config.data.crop}
        if checkpoints.latest is not None:
            _check_same_stream(workdir, checkpoints.read_about(checkpoints.latest)["stream"], stream)
            state = checkpoints.restore(checkpoints.latest, state)
        first = int(state.step)
        say(
            f"training {sum(x.size for x in trainable.values()):,} parameters ({sum(x.size for x in frozen.values()):,} frozen)"
            f" on {mesh.size} {jax.devices()[0].platform} devices, from step {first} to {config.steps}, in {workdir}"
        )

        # The data: what a step sees is a function of its number, so resuming needs nothing else.
        batches = train_batches(
            source,
            crop=config.data.crop,
            batch_size=config.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            seed=config.seed,
            start=first,
            workers=config.data.workers,
            max_segments=config.data.max_segments,
        )
        stack.callback(batches.close)
        metrics = RunLog(workdir, config.to_dict(), first_step=first, wandb=config.wandb)
        stack.callback(metrics.close)
        validate = val_source and Validator(
            start,
            val_source,
            metrics,
            images=config.eval.images,
            pictures=config.eval.pictures,
            short_side=config.eval.short_side,
            max_side=config.eval.max_side,
        )
        train_step = make_train_step(model, settings, mesh)

        stop_asked = stack.enter_context(_preemption())
        watch = Watch(metrics, sorted(trainable), first, config.steps, config.log_every)
        stack.callback(watch.close)
        for step in range(first + 1, config.steps + 1):
            with watch.waiting():
                example = next(batches)
                batch = sharding.place_batch(example.batch, mesh)
            with jax.set_mesh(mesh):
                state, found = train_step(state, frozen, text, batch)
            if mesh.size > 1 and jax.default_backend() == "cpu":
                # Virtual devices on few cores: steps in flight starve each other's collectives until they abort.
                jax.block_until_ready(state)
            watch.saw(step, found, example.skipped, example.over_budget)

            last = step == config.steps
            scores = None
            if validate and (last or step % config.eval.every == 0):
                watch.flush()
                scores = validate(best_parameters(state), step)
                watch.report(step, scores)
            stopping = stop_asked(step)
            if scores or last or stopping or step % kept.every == 0:
                # What is saved has been looked at: a checkpoint is never made of NaNs.
                watch.flush()
                checkpoints.save(state, {"stream": stream}, scores)
            if stopping and not last:
                checkpoints.wait()
                say(f"asked to stop: step {step} is saved in {checkpoints.folder}; the same command goes on from there")
                return _result(start, state)

        checkpoints.wait()
        result = _result(start, state)
        if jax.process_index() == 0:
            checkpoint.save(workdir / FINAL, result, overwrite=True)
        say(f"the trained model is {workdir / FINAL}")
        if checkpoints.best not in (None, config.steps):
            say(
                f"step {checkpoints.best} has a higher {kept.best}: `python -m convert run --run {workdir} --step best --output"
                " DIR` makes a model of it"
            )
    return result


class Watch:
    """Looks at every step's losses, one step behind the device, and tells: progress line, JSON lines, TensorBoard."""

    def __init__(self, metrics: RunLog, names: list[str], first: int, steps: int, every: int):
        self._metrics, self._names, self._every = metrics, names, every
        self._unseen: tuple[int, StepMetrics] | None = None
        self._waited, self._steps, self._since = 0.0, 0, time.perf_counter()
        self.skipped, self.over_budget = 0, 0
        self._progress = tqdm(
            total=steps, initial=first, desc="training", unit="step", disable=None if jax.process_index() == 0 else True
        )

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the device waits for."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def saw(self, step: int, found: StepMetrics, skipped: tuple[str, ...], over_budget: int) -> None:
        """A step is on its way; the one before it should be done."""
        for reason in skipped:
            tqdm.write(f"skipped an image: {reason}", file=sys.stderr)
        self.skipped += len(skipped)
        self.over_budget += over_budget
        self.flush()
        self._unseen = step, found

    def flush(self) -> None:
        """Looks at the step that has not been looked at yet.

        Raises:
            ValueError: a loss or a gradient is not finite.
        """
        if self._unseen is None:
            return
        (step, found), self._unseen = self._unseen, None
        values = jax.device_get(found)
        check_finite(step, values, self._names)
        self._steps += 1
        self._progress.update()
        if step % self._every == 0:
            self._write(step, values)

    def report(self, step: int, scores: Mapping[str, float]) -> None:
        for name, value in scores.items():
            self._metrics.measure(name, value)
        self._metrics.write(step)
        tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))

    def close(self) -> None:
        self._progress.close()

    def _write(self, step: int, values: StepMetrics) -> None:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        rate, waiting = self._steps / seconds, self._waited / seconds
        self._waited, self._steps = 0.0, 0
        measured = {
            "loss": values.loss,
            **{name: getattr(values, name).sum() for name in ("cross_entropy", "mask", "dice")},
            **{
                f"{name}/{output}": value
                for name in ("cross_entropy", "mask", "dice")
                for output, value in enumerate(getattr(values, name))
            },
            "segments": values.segments,
            "gradient_norm": values.gradient_norm,
            "learning_rate": values.learning_rate,
            "steps_per_second": rate,
            "data_wait_share": waiting,
            "memory_gib": _peak_memory() / 2**30,
            "skipped_images": self.skipped,
            "segments_over_budget": self.over_budget,
        }
        for name, value in measured.items():
            self._metrics.measure(f"train/{name}", float(value))
        self._metrics.write(step)
        self._progress.set_postfix_str(
            f"loss {values.loss:.2f}, gradient {values.gradient_norm:.3g}, data wait {waiting:.0%}", refresh=False
        )


def check_finite(step: int, values: StepMetrics, names: list[str]) -> None:
    """Raises ValueError, with the loss and the parameter that went first, unless all is finite."""
    losses = [
        f"{name} of output {output}"
        for name in ("cross_entropy", "mask", "dice")
        for output in np.flatnonzero(~np.isfinite(getattr(values, name)))
    ]
    gradients = [names[i] for i in np.flatnonzero(~np.isfinite(values.gradient_squares))]
    if not losses and not gradients and np.isfinite(values.loss):
        return
    loss = f"the loss {losses[0]} is not finite" if losses else "the losses are finite"
    gradient = (
        f"the gradient of {gradients[0]} is not (first of {len(gradients)})" if gradients else "the gradients are"
    )
    joint = ", and " if bool(losses) == bool(gradients) else ", but "
    raise ValueError(
        f"training stopped at step {step}: {loss}{joint}{gradient}; the checkpoints before it are good: lower"
        " optim.learning_rate, or compute in float32 (compute_dtype)"
    )


def best_parameters(state: TrainState) -> dict[str, jax.Array]:
    """The averaged parameters if there are such, else the parameters."""
    return state.parameters if state.average is None else state.average


def say(line: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(line)


def _start(workdir: epath.Path, config: ConfigDict, description: ModelDescription, source: Dataset) -> Checkpoint:
    """What training starts from: found in `start`, where a new run leaves it."""
    folder = workdir / START
    if folder.exists():
        start = checkpoint.read(folder)
        if start.description != description or start.training_vocabulary != source.vocabulary:
            raise ValueError(
                f"{workdir} holds a run of another model or vocabulary than the configuration's; choose another workdir"
            )
        return start
    start = starting_point(
        config.init, description, source.vocabulary, seed=config.seed, void_weight=config.losses.void_weight
    )
    if jax.process_index() == 0:
        checkpoint.save(folder, start)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("start is written")
    return start


def _result(start: Checkpoint, state: TrainState) -> Checkpoint:
    """The whole model with what was trained, on every host."""
    return start._replace(parameters={**start.parameters, **on_host(best_parameters(state))})


def _check_same_stream(workdir: epath.Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if saved[name] != value:
            raise ValueError(
                f"the run in {workdir} has {name} {saved[name]}, and the configuration {value}: it would not be the same"
                " run; restore that, or choose another workdir"
            )


@contextlib.contextmanager
def _preemption() -> Iterator[Callable[[int], bool]]:
    """A question for the end of every step: has the machine been asked to stop? All processes get the same answer."""
    if jax.process_count() > 1:
        # JAX's own service listens to the signal, and finds a step that all processes can stop at.
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = []
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    try:
        yield lambda step: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)


def _peak_memory() -> int:
    """Bytes: of the first device where it tells, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return stats.get("peak_bytes_in_use", peak * (1 if sys.platform == "darwin" else 1024))
