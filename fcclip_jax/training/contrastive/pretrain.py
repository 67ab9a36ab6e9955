"""Contrastive pre-training, top to bottom."""

import contextlib
import os
from collections.abc import Callable, Mapping

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from fcclip_jax import checkpoint, weights
from fcclip_jax.checkpoint import Checkpoint, Origin, text_fingerprint
from fcclip_jax.data.caption_folder import CaptionFolder
from fcclip_jax.data.captions import CaptionSource, caption_batches
from fcclip_jax.models.building import abstract_model, with_values
from fcclip_jax.models.descriptions import ClipDescription, ModelDescription
from fcclip_jax.process_memory import return_free_memory
from fcclip_jax.training import sharding
from fcclip_jax.training.checkpoints import Checkpoints
from fcclip_jax.training.contrastive.config import contrastive_settings
from fcclip_jax.training.contrastive.step import (
    fresh_clip,
    initial_contrastive_state,
    make_contrastive_step,
)
from fcclip_jax.training.run_folder import FINAL, START
from fcclip_jax.training.run_log import RunLog
from fcclip_jax.training.starting_model import clip_difference, clip_of_config
from fcclip_jax.training.stop_requests import stop_requests
from fcclip_jax.training.validate import on_host
from fcclip_jax.training.watch import Watch, announce
from fcclip_jax.world import words
from fcclip_jax.world.naming import Naming, held_out_scenes
from fcclip_jax.world.sprites import KEPT_BACK
from fcclip_jax.world.windows import Windows

HELD_OUT_SEED = 500
"""The seed of the scenes that judge a CLIP; its pictures have the seed of the run, which must differ."""


def pretrain(config: ConfigDict, workdir: str | os.PathLike[str]) -> Checkpoint:
    """Trains both towers of a CLIP in `workdir`, or resumes a run there. Returns the CLIP, which it also writes to `workdir`/final.

    Raises:
        ValueError, OSError: the configuration, the data or the checkpoints do not allow it, or a loss is not finite.
    """
    settings = contrastive_settings(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    for size in settings.sizes:
        sharding.check_batch_size(size.images, 1, mesh)

    # The data, and the model: new, or a CLIP to adapt.
    description = _described(config)
    source = open_captions(config)
    workdir = checkpoint.resolve(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    start = _start(workdir, config, description)
    validate = _validation(config, description)

    with contextlib.ExitStack() as stack:
        # The state: new, or the latest checkpoint's.
        state = initial_contrastive_state(start.parameters, settings.optim, settings.steps, mesh)
        checkpoints = Checkpoints(workdir, keep_last=config.checkpoint.keep_last, keep_best=0, best=None)
        stack.callback(checkpoints.close)
        stream = {
            "captions": source.name,
            "seed": config.seed,
            "images": len(source),
            "sizes": [list(size) for size in settings.sizes],
            "first_steps": settings.first_steps,
        }
        if checkpoints.latest is not None:
            saved = checkpoints.read_about(checkpoints.latest)["stream"]
            if saved != stream:
                raise ValueError(
                    f"the run in {workdir} reads {saved}, and the configuration {stream}: a resumed run must use the same"
                    " images; restore the values, or choose another workdir"
                )
            state = checkpoints.restore(checkpoints.latest, state)
        done = int(state.step)
        announce(
            f"training {sum(x.size for x in start.parameters.values()):,} parameters on {mesh.size}"
            f" {jax.devices()[0].platform} device{'s' * (mesh.size > 1)}, from step {done} to {settings.steps}, in {workdir}"
        )

        # The batches: each is a function of its step's number.
        batches = caption_batches(
            source,
            description.text,
            settings.sizes,
            first_steps=settings.first_steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            seed=config.seed,
            start=done,
            workers=config.data.workers,
        )
        stack.callback(batches.close)
        log = RunLog(workdir, config.to_dict(), first_step=done, wandb=config.wandb)
        stack.callback(log.close)
        train_step = make_contrastive_step(description, settings.optim, settings.steps, settings.average, mesh)

        # The loop.
        should_stop = stack.enter_context(stop_requests())
        watch = Watch(log, sorted(start.parameters), done, settings.steps, config.log_every)
        stack.callback(watch.close)
        for step in range(done + 1, settings.steps + 1):
            with watch.waiting():
                example = next(batches)
                batch = sharding.place_batch(example.batch, mesh)
            with jax.set_mesh(mesh):
                state, metrics = train_step(state, batch)
            if mesh.size > 1 and jax.default_backend() == "cpu":
                # Virtual devices on few cores: steps in flight starve each other's collectives until they abort.
                jax.block_until_ready(state)
            if step == done + len(settings.sizes):
                return_free_memory()  # the compiler's
            watch.add(step, metrics, example.skipped)

            last = step == settings.steps
            stopping = should_stop(step)
            if last or stopping or step % config.checkpoint.every == 0:
                # The step is checked first: a checkpoint never holds NaNs.
                watch.flush()
                checkpoints.save(state, {"stream": stream})
            if validate and (last or (config.eval.every and step % config.eval.every == 0)):
                watch.flush()
                watch.report(step, validate(on_host(state.average)))
            if stopping and not last:
                checkpoints.wait()
                announce(
                    f"stop requested: step {step} is saved in {checkpoints.folder}; the same command resumes from it"
                )
                return _result(start, on_host(state.average))

        checkpoints.wait()
        result = _result(start, on_host(state.average))
        if jax.process_index() == 0:
            checkpoint.save(workdir / FINAL, result, overwrite=True)
        announce(f"the trained CLIP is {workdir / FINAL}")
    return result


def open_captions(config: ConfigDict) -> CaptionSource:
    """Opens the configuration's images with captions.

    Raises:
        ValueError, OSError: they cannot be opened.
    """
    if config.data.captions == "world":
        if config.seed == HELD_OUT_SEED:
            raise ValueError(f"seed is {config.seed}, which the held-out scenes have; choose another")
        return Windows(tuple(config.data.designs), config.seed)
    return CaptionFolder(config.data.captions)


def _validation(
    config: ConfigDict, description: ClipDescription
) -> Callable[[Mapping[str, np.ndarray]], dict[str, float]] | None:
    """Returns a function of the parameters that measures a CLIP of the miniature world; None for other data."""
    if config.data.captions != "world" or not config.eval.scenes:
        return None
    model = abstract_model(description)
    scenes = {
        "": held_out_scenes(tuple(config.data.designs), config.eval.scenes, HELD_OUT_SEED),
        f"{KEPT_BACK}/": held_out_scenes((KEPT_BACK,), config.eval.scenes, HELD_OUT_SEED),
    }
    naming = Naming(model.clip, scenes)
    return lambda parameters: naming(with_values(model, jax.device_put(dict(parameters))).clip)


def _described(config: ConfigDict) -> ClipDescription:
    """Returns the sizes of the configuration's CLIP.

    Raises:
        ValueError: no CLIP has that name, or it is a ResNet.
    """
    description = clip_of_config(config.model.clip)
    if description.image.family == "resnet":
        raise ValueError(
            f"model.clip is {config.model.clip!r}, a ResNet, whose attention pooling is not trained here; choose a ConvNeXt"
        )
    return description


def _start(workdir: epath.Path, config: ConfigDict, description: ClipDescription) -> Checkpoint:
    """Reads the CLIP that the run in `workdir` started from; a new run makes it and writes it there."""
    if jax.process_count() > 1:
        # All processes look before the first one writes: otherwise a late one would find the model and not wait below.
        multihost_utils.sync_global_devices("start is looked for")
    folder = workdir / START
    if folder.exists():
        start = checkpoint.read(folder)
        if start.description != description:
            raise ValueError(f"{workdir} holds a run with a different model; choose another workdir")
        return start
    known_words = words.WORDS if config.data.captions == "world" else None
    if config.init:
        start = checkpoint.read(weights.find(config.init))
        known_words = start.known_words
        found = start.description.clip if isinstance(start.description, ModelDescription) else start.description
        if found != description:
            difference = clip_difference(found, description)
            raise ValueError(
                f"the CLIP in {config.init} is not the configuration's model.clip {config.model.clip!r}: {difference}"
            )
        parameters = {name: value for name, value in start.parameters.items() if name.startswith("clip.")}
    else:
        parameters = fresh_clip(description, config.seed)
    start = Checkpoint(
        description,
        parameters,
        training_vocabulary=None,
        text_sha256=text_fingerprint(description, parameters),
        source=Origin("trained by fcclip_jax", ""),
        clip_source=None,
        ignored={},
        known_words=known_words,
    )
    if jax.process_index() == 0:
        checkpoint.save(folder, start)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("start is written")
    return start


def _result(start: Checkpoint, parameters: Mapping[str, np.ndarray]) -> Checkpoint:
    return start._replace(parameters=parameters, text_sha256=text_fingerprint(start.description, parameters))
