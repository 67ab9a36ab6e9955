"""Checks an evaluation's configuration (configs/eval.py), and opens the examples that it names."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from ml_collections import ConfigDict

from fcclip_jax.conventions import IGNORE, IGNORE_8BIT, OVERLAP_THRESHOLD, TASKS
from fcclip_jax.data.datasets import CUSTOM
from fcclip_jax.evaluation.benchmarks import BENCHMARKS
from fcclip_jax.evaluation.examples import Examples, open_benchmark, open_panoptic, open_semantic, open_world
from fcclip_jax.evaluation.paper_tables import SWEEPS
from fcclip_jax.inference.postprocess import InstanceScores
from fcclip_jax.models.descriptions import OFFICIAL_DEFAULTS, DefaultsDescription
from fcclip_jax.models.precision import check_precision
from fcclip_jax.text.class_lists import read_numbered_classes
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.world.panoptic import WORLD

ENSEMBLE_MODES = ("geometric", "arithmetic")


class EvalSettings(NamedTuple):
    """The computation for each image. The log records these values; a changed value makes a different evaluation."""

    tasks: tuple[str, ...] = TASKS
    overlap_threshold: float | None = OVERLAP_THRESHOLD
    """The minimum share of its own mask that a panoptic segment must keep, from 0 to 1. None stands for the
    checkpoint's, until that is read."""
    semantic_before_resize: bool = False
    """Forms class scores at the network's size, as the official code does where it evaluates semantic maps alone."""
    grounding: bool = False
    """Offers each image only the classes that its annotation has (the paper's table 7)."""
    save_predictions: bool = False
    """Writes each image's result in the public formats."""
    sweep: str | None = None
    """Measures only PQ, for every way to classify masks that this one of paper_tables.SWEEPS lists."""
    void_trust: Mapping[str, float] = OFFICIAL_DEFAULTS.void_trust
    """By task, see `models.classifiers.ensemble`. Missing tasks stand for the checkpoint's values, until these are read."""
    instance_scores: InstanceScores | None = OFFICIAL_DEFAULTS.instance_scores
    """See `DefaultsDescription`. None stands for the checkpoint's."""

    def with_defaults(self, defaults: DefaultsDescription) -> "EvalSettings":
        """Returns the settings with the checkpoint's values where the configuration has none."""
        overlap_threshold = defaults.overlap_threshold if self.overlap_threshold is None else self.overlap_threshold
        return self._replace(
            overlap_threshold=overlap_threshold,
            void_trust=defaults.choose_void_trust(self.void_trust),
            instance_scores=self.instance_scores or defaults.instance_scores,
        )

    def about(self) -> dict[str, Any]:
        """Returns what identifies the evaluation; values that logs of earlier versions lack are left out where they change
        nothing."""
        about = self._asdict()
        for name in ("void_trust", "instance_scores"):
            if about[name] == getattr(OFFICIAL_DEFAULTS, name):
                del about[name]
        return about


def eval_settings(config: ConfigDict) -> EvalSettings:
    """Returns the configuration's settings.

    Raises:
        ValueError: a value is out of range, or contradicts another.
    """
    _check_values(config)
    tasks = tuple(task for task in TASKS if config[task])
    if not tasks:
        raise ValueError("panoptic, semantic and instances are all False: set at least one of them to True")
    if config.sweep is not None:
        _check_sweep(config)
        tasks = ("panoptic",)
    second = config.second_checkpoint is not None
    if (config.sweep == "classifiers" and not second) or (second and config.sweep not in ("classifiers", "resolution")):
        raise ValueError(
            "give second_checkpoint with sweep=classifiers, which compares two checkpoints, or with sweep=resolution, which"
            " can; and only with these"
        )
    return EvalSettings(
        tasks=tasks,
        overlap_threshold=config.overlap_threshold,
        semantic_before_resize=config.semantic_before_resize,
        grounding=config.grounding,
        save_predictions=config.save_predictions,
        sweep=config.sweep,
        void_trust={task: value for task, value in config.void_trust.items() if value is not None},
        instance_scores=config.instance_scores,
    )


def open_examples(config: ConfigDict, tasks: Sequence[str]) -> Examples:
    """Opens the benchmark, the miniature world or the user's own data, and selects `config.images` of its images.

    Raises:
        ValueError: values contradict each other, or files do not fit together.
        FileNotFoundError: a file is missing.
    """
    custom = config.custom
    given = {name for name, value in custom.items() if value not in (None, "") and (name, value) != ("first_label", 0)}
    if config.benchmark != WORLD and config.world.designs != "training":
        raise ValueError(
            f"world.designs is for the miniature world, but the benchmark is {config.benchmark}: leave it out, or use"
            " configs/eval.py:world"
        )
    if config.benchmark != CUSTOM:
        if given:
            raise ValueError(
                f"custom.{min(given)} is for data of your own, but the benchmark is {config.benchmark}: leave it out, or use"
                " configs/eval.py:custom"
            )
        if config.benchmark == WORLD:
            examples = open_world(config.world.designs)
        else:
            examples = open_benchmark(config.benchmark, config.root, tasks)
    elif given == {"images", "panoptic_json", "panoptic_pngs"}:
        examples = open_panoptic(custom.images, custom.panoptic_json, custom.panoptic_pngs)
    elif {"images", "labels", "words"} <= given <= {"images", "labels", "words", "first_label", "ignore_label"}:
        if config.sweep:
            raise ValueError(
                "a sweep measures PQ, but label maps have no segments: give custom.panoptic_json and custom.panoptic_pngs"
            )
        if set(tasks) != {"semantic"}:
            raise ValueError(
                "label maps have no segments or instances: set --config.panoptic=False --config.instances=False, or give"
                " custom.panoptic_json and custom.panoptic_pngs"
            )
        examples = open_semantic(
            custom.images, custom.labels, custom_vocabulary(custom), first_label=custom.first_label
        )
    else:
        raise ValueError(
            f"custom has {', '.join(sorted(given)) or 'no values'}: give images, panoptic_json and panoptic_pngs; or images,"
            " labels and words, and optionally first_label and ignore_label"
        )
    return examples.spread(config.images) if config.images else examples


def custom_vocabulary(custom: ConfigDict) -> Vocabulary:
    """Returns the classes of the user's label maps, with the ignored label.

    Raises:
        ValueError: the words are not a vocabulary, or the ignored label belongs to a class.
    """
    if custom.first_label < 0:
        raise ValueError(f"custom.first_label is {custom.first_label}; labels must be at least 0")
    vocabulary = read_numbered_classes(custom.words, option="custom.words")
    ignore = vocabulary.ignore_label if custom.ignore_label is None else custom.ignore_label
    if ignore is not None and not 0 <= ignore <= IGNORE:
        raise ValueError(f"custom.ignore_label is {ignore}; labels must be from 0 to {IGNORE}")
    last = custom.first_label + len(vocabulary.classes) - 1
    if ignore is None and last < IGNORE_8BIT:
        ignore = IGNORE_8BIT
    if ignore is not None and custom.first_label <= ignore <= last:
        raise ValueError(
            f"the ignored label {ignore} belongs to a class: classes have the labels {custom.first_label} to"
            f" {last}; set --config.custom.ignore_label to another"
        )
    return dataclasses.replace(vocabulary, ignore_label=ignore)


def _check_values(config: ConfigDict) -> None:
    for name, least in (("batch_size", 1), ("short_side", 1), ("images", 0), ("worst", 0)):
        if config[name] is not None and config[name] < least:
            raise ValueError(f"{name} is {config[name]}; it must be at least {least}")
    if config.max_side < config.short_side:
        raise ValueError(f"max_side is {config.max_side}; it must be at least short_side, {config.short_side}")
    check_precision(config.precision)
    if config.overlap_threshold is not None and not 0 <= config.overlap_threshold <= 1:
        raise ValueError(f"overlap_threshold is {config.overlap_threshold}; it must be from 0 to 1")
    OFFICIAL_DEFAULTS.choose_void_trust({task: value for task, value in config.void_trust.items() if value is not None})
    if config.instance_scores not in (None, *get_args(InstanceScores)):
        raise ValueError(
            f"instance_scores is {config.instance_scores!r}; choose {' or '.join(get_args(InstanceScores))}"
        )
    for name in ("alpha", "beta"):
        if config.ensemble[name] is not None and not 0 <= config.ensemble[name] <= 1:
            raise ValueError(f"ensemble.{name} is {config.ensemble[name]}; it must be from 0 to 1")
    if config.ensemble.mode not in (None, *ENSEMBLE_MODES):
        raise ValueError(f"ensemble.mode is {config.ensemble.mode!r}; choose {' or '.join(ENSEMBLE_MODES)}")


def _check_sweep(config: ConfigDict) -> None:
    if config.sweep not in SWEEPS:
        raise ValueError(f"sweep is {config.sweep!r}; choose one of {', '.join(SWEEPS)}")
    for name in ("grounding", "save_predictions"):
        if config[name]:
            raise ValueError(f"a sweep measures only the PQ of all classes: leave {name} out")
    chosen = [name for name, value in config.ensemble.items() if value is not None]
    if chosen and config.sweep != "classifiers":
        raise ValueError(f"sweep={config.sweep} sets the ensemble itself: leave ensemble.{chosen[0]} out")
    benchmark = BENCHMARKS.get(config.benchmark)
    if benchmark is not None and benchmark.panoptic is None:
        raise ValueError(f"a sweep measures PQ, but {benchmark.title} has no panoptic annotation")
