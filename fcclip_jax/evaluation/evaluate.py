"""Evaluates a checkpoint by a configuration: opens and checks everything, segments, scores and reports."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from fcclip_jax import caching, checkpoint, command_line, weights
from fcclip_jax.conventions import RANDOM_WEIGHTS
from fcclip_jax.evaluation import page, predictions, report
from fcclip_jax.evaluation.benchmarks import BENCHMARKS
from fcclip_jax.evaluation.clips import open_clip
from fcclip_jax.evaluation.config import EvalSettings, eval_settings, open_examples
from fcclip_jax.evaluation.examples import Examples
from fcclip_jax.evaluation.log import EvaluationLog, Line
from fcclip_jax.evaluation.loop import Outcome, segment_and_score, wait_for_all
from fcclip_jax.evaluation.paper_tables import Reported, Sweep, reported_for, sweep_of
from fcclip_jax.evaluation.scores import summarize, summarize_sweep
from fcclip_jax.files import write_files
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import SMALL, ModelDescription
from fcclip_jax.models.fcclip import FCCLIP
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.text.vocabulary import Vocabulary


class Opened(NamedTuple):
    """A model to evaluate."""

    model: FCCLIP
    training_vocabulary: Vocabulary
    description: ModelDescription
    text_fingerprint: str
    """Identifies the text tower's weights."""
    known_words: tuple[str, ...] | None


def evaluate(config: ConfigDict, checkpoint_path: str, workdir: str) -> int:
    """Evaluates a checkpoint, prints the table, and writes report.md, report.json and worst.html into `workdir`.

    The same call resumes an evaluation that was stopped. Everything that can be checked is checked before the first image is
    segmented.

    checkpoint_path: a folder that training or convert wrote, published weights by name (see `weights.find`) or "random".

    Returns:
        0, or 1 if images were skipped: unreadable, or too large for the memory.

    Raises:
        ValueError, OSError: the configuration, the checkpoint, the data or the folder cannot be used.
    """
    settings = eval_settings(config)
    examples = open_examples(config, settings.tasks)
    if config.custom.words and jax.process_index() == 0:
        command_line.say(examples.vocabulary.summary())
    if settings.sweep and not examples.has_panoptic:
        raise ValueError(f"a sweep measures PQ, but {examples.name} has no panoptic annotation")
    folder = pathlib.Path(workdir).expanduser()
    caching.keep_compiled_programs()
    opened = open_model(checkpoint_path)
    settings = settings.with_defaults(opened.description.defaults)
    segmenter = make_segmenter(config, opened)
    engine = segmenter.engine
    about = {
        "benchmark": config.benchmark,
        "images": examples.digest,
        "vocabulary": vocabulary_digest(examples.vocabulary),
        "annotation": examples.annotation_digest,
        "size": [config.short_side, config.max_side],
        "precision": config.precision,
        **settings.about(),
        "ensemble": dataclasses.asdict(engine.ensemble),
        "checkpoint": weights_digest(opened.model, opened.description),
        "training_vocabulary": vocabulary_digest(opened.training_vocabulary),
    }
    sweep, second_clip = None, None
    if settings.sweep:
        sweep = sweep_of(settings.sweep, config.benchmark, second_clip=config.second_checkpoint is not None)
    if config.second_checkpoint is not None:
        second = open_clip(config.second_checkpoint)
        about["second_checkpoint"] = weights_digest(second.clip, "")
        second_clip = second.classifier(examples.vocabulary, opened.training_vocabulary)
    seen = examples.vocabulary.seen_by(opened.training_vocabulary)
    paper = reported_for(opened.description.clip.image, opened.training_vocabulary.name)
    del opened  # the engine has weights of its own, in bfloat16 perhaps
    log = EvaluationLog(folder, about)
    segmenter.set_classes(examples.vocabulary)
    engine.expect(examples.sizes)
    ways = sweep.ways(engine.ensemble, settings.void_trust["panoptic"]) if sweep else ()
    outcome = segment_and_score(engine, examples, log, settings, folder, ways, second_clip)
    if not outcome.lines:
        raise ValueError("no image could be read, so no report is written; the lines above give the reasons")
    try:
        if jax.process_index() == 0:
            write_report(config, examples, outcome, settings, sweep, folder, seen, paper, about)
            if config.worst and not settings.sweep:
                if settings.tasks == ("instances",):
                    print("worst.html is not written: it orders images by PQ or mIoU, which are not evaluated")
                else:
                    page.write(folder, outcome.lines, examples, engine, settings, config.worst)
                    print(f"the images with the lowest scores: {folder / 'worst.html'}")
            if outcome.images_per_second:
                speed = report.to_json(
                    {"images_per_second": outcome.images_per_second, "processes": jax.process_count()}
                )
                # Not in the report, which is the same however often the evaluation was resumed.
                write_files({folder / "speed.json": speed})
                processes = f" in each of {jax.process_count()} processes" if jax.process_count() > 1 else ""
                print(f"{outcome.images_per_second:.3g} images/s{processes}")
    finally:
        # If a process ended early, the processes that still wait for it would stop after some minutes.
        wait_for_all("the report is written")
    return command_line.INCOMPLETE if outcome.failed else command_line.DONE


def open_model(checkpoint_path: str) -> Opened:
    """Loads a checkpoint, or makes a random model."""
    if checkpoint_path == RANDOM_WEIGHTS:
        return Opened(random_model(SMALL, 0), Vocabulary.load("coco_panoptic"), SMALL, "random 0", None)
    loaded = checkpoint.load(weights.find(checkpoint_path, whole=True))
    return Opened(loaded.model, loaded.training_vocabulary, loaded.description, loaded.text_sha256, loaded.known_words)


def make_segmenter(config: ConfigDict, opened: Opened) -> Segmenter:
    """Makes a segmenter on this process's devices, with the configuration's changes to the model's ensemble."""
    changes = {name: value for name, value in config.ensemble.items() if value is not None}
    opened.model.ensemble = dataclasses.replace(opened.model.ensemble, **changes)
    devices = jax.local_devices()
    batch_size = config.batch_size or len(devices)
    return Segmenter(
        opened.model,
        opened.training_vocabulary,
        fingerprint=opened.text_fingerprint,
        known_words=opened.known_words,
        short_side=config.short_side,
        max_side=config.max_side,
        batch_size=batch_size,
        batched=config.batched,
        precision=config.precision,
        # The largest number of devices that divides the batch.
        devices=devices[: next(n for n in range(len(devices), 0, -1) if batch_size % n == 0)],
        cache_dir=caching.cache_dir() / "text",
    )


def write_report(
    config: ConfigDict,
    examples: Examples,
    outcome: Outcome,
    settings: EvalSettings,
    sweep: Sweep | None,
    folder: pathlib.Path,
    seen: Sequence[bool],
    paper: Reported,
    about: Mapping[str, Any],
) -> None:
    """Prints the table, and writes report.md, report.json and, if they are saved, the predictions' json files."""
    lines = outcome.lines
    if sweep:
        content, text = sweep_report(config, sweep, examples, lines, seen)
    else:
        content, text = scores_report(config, examples, lines, seen, paper)
    counts = {"benchmark": config.benchmark, "evaluated": len(lines), "skipped": outcome.failed}
    if outcome.failed:
        images = "1 image was" if outcome.failed == 1 else f"{outcome.failed} images were"
        text += f"\n{images} skipped: unreadable, or too large for the memory.\n"
    encoded = report.to_json({**counts, **content, "about": about})
    write_files({folder / "report.json": encoded, folder / "report.md": text.encode()})
    if settings.save_predictions:
        predictions.finish(folder, lines, examples)
    print(text)


def scores_report(
    config: ConfigDict, examples: Examples, lines: Mapping[int, Line], seen: Sequence[bool], paper: Reported
) -> tuple[dict[str, Any], str]:
    """Returns an evaluation's scores as part of report.json, and as a table."""
    scores = summarize(list(lines.values()), examples, seen)
    suffix = "_grounding" if config.grounding else ""
    published = paper.scores.get(config.benchmark, {})
    reported = {name: published[name + suffix] for name in scores.overall if name + suffix in published}
    text = report.table(title(config, examples, len(lines)), scores.overall, reported, paper.model)
    return {
        "scores": scores.overall,
        "reported": reported,
        "reported_model": paper.model,
        "classes": scores.classes,
    }, text


def sweep_report(
    config: ConfigDict, sweep: Sweep, examples: Examples, lines: Mapping[int, Line], seen: Sequence[bool]
) -> tuple[dict[str, Any], str]:
    """Returns a sweep's scores as part of report.json, and as a table."""
    found = summarize_sweep(sweep, list(lines.values()), examples, np.asarray(seen))
    return {"sweep": found}, report.sweep_table(title(config, examples, len(lines)), sweep, found, config.benchmark)


def title(config: ConfigDict, examples: Examples, number: int) -> str:
    """Returns the table's title; `number` images were evaluated."""
    benchmark = BENCHMARKS.get(config.benchmark)
    name, whole = (benchmark.title, benchmark.number) if benchmark else (examples.name, len(examples))
    return f"{name}, {number} of {whole} images{', grounding' if config.grounding else ''}"


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Returns a checksum of all classes."""
    return hashlib.sha256(vocabulary.to_json().encode()).hexdigest()


def weights_digest(module: nnx.Module, description: Any) -> str:
    """Returns a checksum of the weights, and of the description of the module that uses them."""
    digest = hashlib.sha256(repr(description).encode())
    for name, variable in sorted(named_variables(module).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(variable[...]))
    return digest.hexdigest()
