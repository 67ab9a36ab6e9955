"""An evaluation as a configuration tells it: opens, checks, segments, reports."""

import dataclasses
import difflib
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from fcclip_jax import caching, checkpoint
from fcclip_jax.conventions import IGNORE, IGNORE_8BIT, RANDOM_WEIGHTS, TASKS
from fcclip_jax.evaluation import benchmarks, page, predictions, report
from fcclip_jax.evaluation.benchmarks import BENCHMARKS, Examples
from fcclip_jax.evaluation.log import EvaluationLog, Line
from fcclip_jax.evaluation.loop import EvalSettings, Outcome, evaluate, wait_for_all
from fcclip_jax.evaluation.paper_tables import Reported, reported_for
from fcclip_jax.evaluation.scores import summarize
from fcclip_jax.evaluation.sweeps import SWEEPS
from fcclip_jax.evaluation.sweeps import summarize as summarize_sweep
from fcclip_jax.files import write_files
from fcclip_jax.inference.engine import Engine
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import SMALL, ModelDescription
from fcclip_jax.models.fcclip import FCCLIP
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.text.vocabulary import Vocabulary, shipped

PRECISIONS = ("highest", "default")
"""Of float32 products, in JAX's words."""


def run(config: ConfigDict, checkpoint_path: str, workdir: str) -> int:
    """Evaluates; prints the table, and writes it beside the report into the folder. The same again goes on.

    Returns 1 if images could not be read, else 0.

    Raises:
        ValueError, OSError: the configuration, the checkpoint, the data or the folder is not as it should be; all that can
            be checked is checked before the first image is segmented.
    """
    settings = eval_settings(config)
    examples = open_examples(config, settings.tasks)
    if settings.sweep and not examples.has_panoptic:
        raise ValueError(f"{examples.name} has no panoptic annotation, which a sweep measures PQ on")
    folder = pathlib.Path(workdir).expanduser()
    about = {
        "benchmark": config.benchmark,
        "images": examples.digest(),
        "vocabulary": digest_of(examples.vocabulary),
        "annotation": examples.annotation_digest(),
        "size": [config.short_side, config.max_side],
        "precision": config.precision,
        **settings._asdict(),
    }
    caching.keep_compiled_programs()
    first = open_model(checkpoint_path, seed=0)
    segmenter = make_segmenter(config, first)
    engine = segmenter.engine
    about |= {
        "ensemble": dataclasses.asdict(engine.ensemble),
        "checkpoint": check_sum(first.model, first.description),
        "training_vocabulary": digest_of(first.training),
    }
    second_trunk = None
    if settings.sweep == "classifiers":
        second = open_model(config.second_checkpoint, seed=1)
        if second.text != first.text:
            raise ValueError(
                f"{config.second_checkpoint} has another text tower than {checkpoint_path}: the embeddings of one vocabulary"
                " must do for both"
            )
        second_trunk = second.model.clip.image
        about["second_checkpoint"] = check_sum(second_trunk, second.description.clip.image)
    log = EvaluationLog(folder, about)
    segmenter.set_classes(examples.vocabulary)
    engine.expect(examples.sizes)
    with jax.default_matmul_precision(config.precision):
        outcome = evaluate(engine, examples, log, settings, folder, second_trunk)
    if not outcome.lines:
        raise ValueError("no image could be read: there is nothing to report")
    try:
        if jax.process_index() == 0:
            write_report(config, examples, outcome, settings, folder, first, about)
            if config.worst and not settings.sweep:
                with jax.default_matmul_precision(config.precision):
                    show_worst(config, examples, outcome.lines, folder, engine, settings)
            if outcome.images_per_second:
                processes = f" in each of {jax.process_count()} processes" if jax.process_count() > 1 else ""
                print(f"{outcome.images_per_second:.3g} images/s{processes}")
    finally:
        wait_for_all(
            "the report is written"
        )  # a process that ends takes those that wait for it along, after some minutes
    return 1 if outcome.failed else 0


def write_report(
    config: ConfigDict,
    examples: Examples,
    outcome: Outcome,
    settings: EvalSettings,
    folder: pathlib.Path,
    opened: "_Opened",
    about: Mapping[str, Any],
) -> None:
    """Prints the table, and writes it and all figures."""
    lines, seen = outcome.lines, examples.vocabulary.seen_by(opened.training)
    if settings.sweep:
        content, text = sweep_report(config, examples, lines, seen)
    else:
        paper = reported_for(opened.description.clip.image, opened.training.name)
        content, text = scores_report(config, examples, lines, seen, paper)
    counts = {"benchmark": config.benchmark, "evaluated": len(lines), "skipped": outcome.failed}
    if outcome.failed:
        text += f"\n{outcome.failed} images could not be read and were skipped.\n"
    whole = report.to_json({**counts, **content, "about": about})
    write_files({folder / "report.json": whole, folder / "report.md": text.encode()})
    if settings.save_predictions:
        predictions.finish(folder, lines, examples)
    print(text)


def scores_report(
    config: ConfigDict, examples: Examples, lines: Mapping[int, Line], seen: Sequence[bool], paper: Reported
) -> tuple[dict[str, Any], str]:
    """What the JSON report has of it, and the table."""
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
    config: ConfigDict, examples: Examples, lines: Mapping[int, Line], seen: Sequence[bool]
) -> tuple[dict[str, Any], str]:
    """What the JSON report has of it, and the table."""
    sweep = SWEEPS[config.sweep]
    found = summarize_sweep(sweep, list(lines.values()), examples, np.asarray(seen))
    return {"sweep": found}, report.sweep_table(title(config, examples, len(lines)), sweep, found, config.benchmark)


def show_worst(
    config: ConfigDict,
    examples: Examples,
    lines: Mapping[int, Line],
    folder: pathlib.Path,
    engine: Engine,
    settings: EvalSettings,
) -> None:
    if settings.tasks == ("instances",):
        print("no page of the worst images: they are ordered by PQ or mIoU, which were left out")
        return
    page.write(folder, lines, examples, engine, settings, config.worst)
    print(f"the worst images: {folder / 'worst.html'}")


def title(config: ConfigDict, examples: Examples, number: int) -> str:
    row = BENCHMARKS.get(config.benchmark)
    name, whole = (row.title, row.number) if row else (examples.name, len(examples))
    return f"{name}, {number} of {whole} images{', grounding' if config.grounding else ''}"


def eval_settings(config: ConfigDict) -> EvalSettings:
    """What the configuration says, checked.

    Raises:
        ValueError: a value cannot be.
    """
    for name, least in (("batch_size", 1), ("short_side", 1), ("images", 0), ("worst", 0)):
        if config[name] is not None and config[name] < least:
            raise ValueError(f"{name} is {config[name]}; it must be at least {least}")
    if config.max_side < config.short_side:
        raise ValueError(f"max_side is {config.max_side}; it must be at least short_side, {config.short_side}")
    if config.precision not in PRECISIONS:
        raise ValueError(f"precision is {config.precision!r}; choose {' or '.join(PRECISIONS)}")
    if not 0 <= config.overlap_threshold <= 1:
        raise ValueError(f"overlap_threshold is {config.overlap_threshold}; it is a share, from 0 to 1")
    for name in ("alpha", "beta"):
        if config.ensemble[name] is not None and not 0 <= config.ensemble[name] <= 1:
            raise ValueError(f"ensemble.{name} is {config.ensemble[name]}; it is from 0 to 1")
    if config.ensemble.mode not in (None, "geometric", "arithmetic"):
        raise ValueError(f"ensemble.mode is {config.ensemble.mode!r}; choose geometric or arithmetic")
    tasks = tuple(task for task in TASKS if config[task])
    if not tasks:
        raise ValueError("panoptic, semantic and instances are all off: there is nothing to evaluate")
    if config.sweep is not None:
        if config.sweep not in SWEEPS:
            raise ValueError(f"sweep is {config.sweep!r}; choose one of {', '.join(SWEEPS)}")
        for name in ("grounding", "save_predictions"):
            if config[name]:
                raise ValueError(f"a sweep measures the PQ of all classes and nothing else: leave {name} out")
        chosen = [name for name, value in config.ensemble.items() if value is not None]
        if chosen and config.sweep != "classifiers":
            raise ValueError(f"sweep={config.sweep} chooses the ensemble itself: leave ensemble.{chosen[0]} out")
        tasks = ("panoptic",)
        row = BENCHMARKS.get(config.benchmark)
        if row is not None and row.panoptic is None:
            raise ValueError(f"{row.title} has no panoptic annotation, which a sweep measures PQ on")
    if (config.sweep == "classifiers") != (config.second_checkpoint is not None):
        raise ValueError(
            "sweep=classifiers compares two checkpoints: second_checkpoint goes with it, and with nothing else"
        )
    return EvalSettings(
        tasks=tasks,
        overlap_threshold=config.overlap_threshold,
        semantic_before_resize=config.semantic_before_resize,
        grounding=config.grounding,
        save_predictions=config.save_predictions,
        sweep=config.sweep,
    )


def open_examples(config: ConfigDict, tasks: Sequence[str]) -> Examples:
    """The benchmark, or the user's own data, of which `config.images` says how many.

    Raises:
        ValueError, FileNotFoundError: something is missing, or does not fit together.
    """
    custom = config.custom
    given = {name for name, value in custom.items() if value not in (None, "") and (name, value) != ("first_label", 0)}
    if config.benchmark != "custom":
        if given:
            raise ValueError(
                f"custom.{min(given)} is for data of your own, and this is {config.benchmark}: leave it out, or take"
                " configs/eval.py:custom"
            )
        examples = benchmarks.open_benchmark(config.benchmark, config.root, tasks)
    elif given == {"images", "panoptic_json", "panoptic_pngs"}:
        examples = benchmarks.open_panoptic(custom.images, custom.panoptic_json, custom.panoptic_pngs)
    elif {"images", "labels", "words"} <= given <= {"images", "labels", "words", "first_label", "ignore_label"}:
        if config.sweep:
            raise ValueError(
                "label maps have no segments, which a sweep measures PQ on: give panoptic_json and panoptic_pngs"
            )
        if set(tasks) != {"semantic"}:
            raise ValueError(
                "label maps have no instances: set --config.panoptic=False --config.instances=False, or give panoptic_json and"
                " panoptic_pngs"
            )
        examples = benchmarks.open_semantic(
            custom.images, custom.labels, custom_vocabulary(custom), first_label=custom.first_label
        )
    else:
        raise ValueError(
            f"custom has {', '.join(sorted(given)) or 'nothing'}: data of your own are images with panoptic_json and panoptic_pngs,"
            " or images with labels and words, with which first_label and ignore_label may go"
        )
    return examples.spread(config.images) if config.images else examples


def custom_vocabulary(custom: ConfigDict) -> Vocabulary:
    """The words of label maps, and the label that does not count.

    Raises:
        ValueError: the words are no vocabulary, or the label that does not count is that of a class.
    """
    if custom.first_label < 0:
        raise ValueError(f"custom.first_label is {custom.first_label}; labels are numbers from 0 on")
    if custom.words in shipped():
        vocabulary = Vocabulary.load(custom.words)
    else:
        if close := difflib.get_close_matches(custom.words, shipped(), n=1, cutoff=0.9):
            raise ValueError(f"custom.words is {custom.words!r}, which is no vocabulary; did you mean {close[0]}?")
        vocabulary = Vocabulary.from_words([word.strip() for word in custom.words.split(";")])
    ignore = vocabulary.ignore_label if custom.ignore_label is None else custom.ignore_label
    if ignore is not None and not 0 <= ignore <= IGNORE:
        raise ValueError(f"custom.ignore_label is {ignore}; labels are numbers from 0 to {IGNORE}")
    last = custom.first_label + len(vocabulary.classes) - 1
    if ignore is None and last < IGNORE_8BIT:
        ignore = IGNORE_8BIT
    if ignore is not None and custom.first_label <= ignore <= last:
        raise ValueError(
            f"the label {ignore}, which does not count, is also that of a class: labels are from {custom.first_label} to {last};"
            " set --config.custom.ignore_label to another"
        )
    return dataclasses.replace(vocabulary, ignore_label=ignore)


class _Opened(NamedTuple):
    model: FCCLIP
    training: Vocabulary
    description: ModelDescription
    text: str
    """Names the text tower's weights."""


def open_model(checkpoint_path: str, seed: int) -> _Opened:
    """seed: of the random model; of text towers, it has the same one whatever the seed."""
    if checkpoint_path == RANDOM_WEIGHTS:
        model = random_model(SMALL, seed)
        model.clip.text = random_model(SMALL, 0).clip.text
        return _Opened(model, Vocabulary.load("coco_panoptic"), SMALL, "random 0")
    loaded = checkpoint.load(checkpoint_path)
    return _Opened(loaded.model, loaded.training_vocabulary, loaded.description, loaded.text_sha256)


def make_segmenter(config: ConfigDict, opened: _Opened) -> Segmenter:
    """On this process's devices."""
    changes = {name: value for name, value in config.ensemble.items() if value is not None}
    opened.model.ensemble = dataclasses.replace(opened.model.ensemble, **changes)
    devices = jax.local_devices()
    batch_size = config.batch_size or len(devices)
    return Segmenter(
        opened.model,
        opened.training,
        fingerprint=opened.text,
        short_side=config.short_side,
        max_side=config.max_side,
        batch_size=batch_size,
        batched=config.batched,
        # As many devices as share a batch evenly.
        devices=devices[: next(n for n in range(len(devices), 0, -1) if batch_size % n == 0)],
        cache_dir=caching.cache_dir() / "text",
    )


def digest_of(vocabulary: Vocabulary) -> str:
    return hashlib.sha256(vocabulary.to_json().encode()).hexdigest()


def check_sum(module: nnx.Module, description: Any) -> str:
    """Of the weights, and of what is made of them."""
    digest = hashlib.sha256(repr(description).encode())
    for name, variable in sorted(named_variables(module).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(variable[...]))
    return digest.hexdigest()
