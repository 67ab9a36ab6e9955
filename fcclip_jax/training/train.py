"""Training, top to bottom."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from fcclip_jax import caching, checkpoint
from fcclip_jax.checkpoint import Checkpoint
from fcclip_jax.command_line import one_line
from fcclip_jax.data.datasets import DATASETS, is_at, open_dataset
from fcclip_jax.data.pipeline import train_batches
from fcclip_jax.data.records import Dataset
from fcclip_jax.data.transforms import SCALES
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import HeadDescription, ModelDescription
from fcclip_jax.process_memory import return_free_memory
from fcclip_jax.training import sharding
from fcclip_jax.training.checkpoints import Checkpoints
from fcclip_jax.training.config import step_settings
from fcclip_jax.training.parameters import is_trainable
from fcclip_jax.training.run_folder import EXAMPLES, FINAL, START
from fcclip_jax.training.run_log import RunLog
from fcclip_jax.training.starting_model import model_description, starting_point, training_classifier
from fcclip_jax.training.step import TrainState, frozen_dtype, initial_state, make_train_step, skeleton
from fcclip_jax.training.stop_requests import stop_requests
from fcclip_jax.training.validate import Validator, on_host
from fcclip_jax.training.watch import Watch, announce
from fcclip_jax.world.examples import write_examples
from fcclip_jax.world.panoptic import EVALUATED, WORLD, WorldDataset


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> Checkpoint:
    """Trains in `workdir`, or resumes a run there. Returns the trained model, which it also writes to `workdir`/final.

    Section 4.1 of the paper: COCO panoptic, 16 crops of 1024 pixels a step, AdamW at 1e-4 for 368,750 steps. CLIP is
    frozen; the pixel decoder, the mask decoder and the embedding of void train.

    Raises:
        ValueError, OSError: the configuration, the data or the checkpoints do not allow it, or a loss is not finite.
    """
    settings = step_settings(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch_size(config.batch_size, config.accumulate, mesh)

    # The data, whose categories are the training vocabulary.
    workdir = checkpoint.resolve(workdir)
    dataset, val_dataset = open_datasets(config, _data_root(config, workdir))
    workdir.mkdir(parents=True, exist_ok=True)

    # The model: CLIP's two towers, and a new head.
    description = model_description(config.model.clip, HeadDescription(**config.model.head))
    start = _start(workdir, config, description, dataset)
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
        # The state: new, or the latest checkpoint's.
        state = initial_state(trainable, settings, mesh)
        saving = config.checkpoint
        checkpoints = Checkpoints(workdir, keep_last=saving.keep_last, keep_best=saving.keep_best, best=saving.best)
        stack.callback(checkpoints.close)
        stream = {
            "images": len(dataset),
            "batch_size": config.batch_size,
            "seed": config.seed,
            "crop": config.data.crop,
            "jitter": list(config.data.jitter),
        }
        if config.data.dataset == WORLD:
            stream["designs"] = config.data.world.designs
        if checkpoints.latest is not None:
            _check_same_stream(workdir, checkpoints.read_about(checkpoints.latest)["stream"], stream)
            state = checkpoints.restore(checkpoints.latest, state)
        done = int(state.step)
        announce(
            f"training {sum(x.size for x in trainable.values()):,} parameters ({sum(x.size for x in frozen.values()):,} frozen)"
            f" on {mesh.size} {jax.devices()[0].platform} device{'s' * (mesh.size > 1)}, from step {done} to {config.steps}, in {workdir}"
        )

        # The batches: each is a function of its step's number, so a resumed run needs nothing else.
        batches = train_batches(
            dataset,
            crop=config.data.crop,
            batch_size=config.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            seed=config.seed,
            start=done,
            workers=config.data.workers,
            max_segments=config.data.max_segments,
            jitter=tuple(map(float, config.data.jitter)),
        )
        stack.callback(batches.close)
        log = RunLog(workdir, config.to_dict(), first_step=done, wandb=config.wandb)
        stack.callback(log.close)
        validate = None
        if val_dataset is not None:
            validate = Validator(
                start,
                val_dataset,
                log,
                images=config.eval.images,
                pictures=config.eval.pictures,
                short_side=config.eval.short_side,
                max_side=config.eval.max_side,
            )
        train_step = make_train_step(model, settings, mesh)

        # The loop.
        should_stop = stack.enter_context(stop_requests())
        watch = Watch(log, sorted(trainable), done, config.steps, config.log_every)
        stack.callback(watch.close)
        for step in range(done + 1, config.steps + 1):
            with watch.waiting():
                example = next(batches)
                batch = sharding.place_batch(example.batch, mesh)
            with jax.set_mesh(mesh):
                state, metrics = train_step(state, frozen, text, batch)
            if mesh.size > 1 and jax.default_backend() == "cpu":
                # Virtual devices on few cores: steps in flight starve each other's collectives until they abort.
                jax.block_until_ready(state)
            if step == done + 1:
                return_free_memory()  # the compiler's
            watch.add(step, metrics, example.skipped, example.over_budget)

            last = step == config.steps
            scores = None
            if validate and (last or step % config.eval.every == 0):
                watch.flush()
                try:
                    scores = validate(best_parameters(state), step)
                except Exception:
                    checkpoints.save(state, {"stream": stream}, None)  # what stops an evaluation costs no training
                    checkpoints.wait()
                    raise
                watch.report(step, scores)
            stopping = should_stop(step)
            if scores or last or stopping or step % saving.every == 0:
                # The step is checked first: a checkpoint never holds NaNs.
                watch.flush()
                checkpoints.save(state, {"stream": stream}, scores)
            if stopping and not last:
                checkpoints.wait()
                announce(
                    f"stop requested: step {step} is saved in {checkpoints.folder}; the same command resumes from it"
                )
                return _result(start, state)

        checkpoints.wait()
        result = _result(start, state)
        if jax.process_index() == 0:
            checkpoint.save(workdir / FINAL, result, overwrite=True)
        announce(f"the trained model is {workdir / FINAL}")
        if checkpoints.best not in (None, int(state.step)):
            announce(
                f"step {checkpoints.best} has a higher {saving.best} than the last step; make a model of it with"
                f" `{checkpoint.convert_command()} run --run {workdir} --step best --output DIR`"
            )
    return result


def open_datasets(config: ConfigDict, root: str | os.PathLike[str] | None = None) -> tuple[Dataset, Dataset | None]:
    """Opens the configuration's training data, and its validation data if it validates.

    root: the folder of the data; by default the configuration's.

    Raises:
        ValueError, OSError: one cannot be opened, or their categories differ.
    """
    root = config.data.root if root is None else root
    dataset = _open_split(config.data, root, "train")
    if not config.eval.every:
        return dataset, None
    try:
        val_dataset = _open_split(config.data, root, "val")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the validation data cannot be opened: {one_line(error)}; correct data.val or data.root, or train without"
            " validation (--config.eval.every=0)"
        ) from error
    if val_dataset.vocabulary.classes != dataset.vocabulary.classes:
        raise ValueError(
            f"the categories of {val_dataset.name} are not those of {dataset.name}; give both splits the same, or set"
            " eval.every to 0"
        )
    return dataset, val_dataset


def _open_split(data: ConfigDict, root: str | os.PathLike[str], split: str) -> Dataset:
    if data.dataset == WORLD:
        images = data.world.images if split == "train" else EVALUATED
        return WorldDataset(split, images, seen_only=True, designs=data.world.designs)
    return open_dataset(data.dataset, root, split, **data[split])


def _data_root(config: ConfigDict, workdir: epath.Path) -> str | os.PathLike[str]:
    """Returns the configuration's root or, if it has no dataset and the configuration allows it, a root of made-up images."""
    name, root, images = config.data.dataset, config.data.root, config.data.examples
    if not images or name not in DATASETS or is_at(name, root):
        return root
    folder = workdir / EXAMPLES
    if jax.process_index() == 0:
        sizes = {"train": images, "val": math.ceil(images / 4)}
        write_examples(name, sizes, folder)
        announce(
            f"{root} has no {name}: training on {sum(sizes.values())} images of emoji with its categories, which were made in"
            f" {folder} to test the setup; --config.data.root=DIR names the folder of real ones"
        )
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("examples are written")
    return folder


def best_parameters(state: TrainState) -> dict[str, jax.Array]:
    """Returns the averaged parameters, or the parameters themselves if no average is kept."""
    return state.parameters if state.average is None else state.average


def _start(workdir: epath.Path, config: ConfigDict, description: ModelDescription, dataset: Dataset) -> Checkpoint:
    """Reads the model that the run in `workdir` started from; a new run makes it and writes it there."""
    if jax.process_count() > 1:
        # All processes look before the first one writes: otherwise a late one would find the model and not wait below.
        multihost_utils.sync_global_devices("start is looked for")
    folder = workdir / START
    if folder.exists():
        start = checkpoint.read(folder)
        # What training does not depend on may have other values than when the run began.
        untrained = {"defaults": start.description.defaults, "ensemble": start.description.ensemble}
        same_model = start.description == dataclasses.replace(description, **untrained)
        if not same_model or start.training_vocabulary != dataset.vocabulary:
            raise ValueError(f"{workdir} holds a run with a different model or vocabulary; choose another workdir")
        return start
    start = starting_point(
        config.init, description, dataset.vocabulary, seed=config.seed, void_weight=config.losses.void_weight
    )
    if jax.process_index() == 0:
        checkpoint.save(folder, start)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("start is written")
    return start


def _result(start: Checkpoint, state: TrainState) -> Checkpoint:
    """Returns the whole model with its trained parameters, on every host."""
    return start._replace(parameters={**start.parameters, **on_host(best_parameters(state))})


def _check_same_stream(workdir: epath.Path, saved: Mapping[str, Any], configured: Mapping[str, Any]) -> None:
    saved = {"jitter": list(SCALES), "designs": "training", **saved}  # of runs that are older than these values
    for name, value in configured.items():
        if saved[name] != value:
            raise ValueError(
                f"the run in {workdir} has {name} {saved[name]}, and the configuration {value}: a resumed run must use the"
                " same images; restore the value, or choose another workdir"
            )
