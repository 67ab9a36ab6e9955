"""The scores that the paper and the official model zoo report, and the settings of the paper's sweeps."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from fcclip_jax.inference.sweep import Way
from fcclip_jax.models.descriptions import CLIP_MODELS, EnsembleDescription, ImageDescription
from fcclip_jax.world.panoptic import WORLD


class Reported(NamedTuple):
    """A model's published scores, in percent."""

    model: str
    scores: Mapping[str, Mapping[str, float]]
    """By benchmark, then by score; the names are report.NAMES', with the suffix "_grounding" for table 7."""


def _zoo(name: str, ade20k: tuple[float, float, float], coco: tuple[float, float, float]) -> Reported:
    """Makes a row of the model zoo; the scores are PQ, AP and mIoU."""
    names = ("pq", "ap", "miou")
    scores = {benchmark: dict(zip(names, row, strict=True)) for benchmark, row in (("ade20k", ade20k), ("coco", coco))}
    return Reported(f"{name}, COCO", scores)


PAPER = Reported(
    "ConvNeXt-L, COCO",
    {  # Tables 1, 2, 3 and 7.
        "coco": {"pq": 54.4, "ap": 44.6, "miou": 63.7},
        "ade20k": {"pq": 26.8, "ap": 16.8, "miou": 34.1, "pq_grounding": 38.4, "miou_grounding": 54.1},
        "cityscapes": {"pq": 44.0, "sq": 75.4, "rq": 53.6, "ap": 26.8, "miou": 56.2, "pq_grounding": 48.1},
        "mapillary": {"pq": 18.2, "sq": 57.7, "rq": 22.9, "miou": 27.9, "pq_grounding": 21.5},
        "ade20k_847": {"miou": 14.8, "miou_grounding": 33.4},
        "pascal_context_459": {"miou": 18.2, "miou_grounding": 41.2},
        "pascal_context_59": {"miou": 58.4, "miou_grounding": 74.9},
        "pascal_voc_21": {"miou": 81.8, "miou_grounding": 88.7},
        "pascal_voc_20": {"miou": 95.4, "miou_grounding": 98.5},
    },
)

REPORTED: dict[tuple[str, str], Reported] = {
    ("convnext_large_d_320", "coco_panoptic"): PAPER,
    ("convnext_large_d_320", "ade20k_150"): Reported(
        "ConvNeXt-L, ADE20K",
        {"coco": {"pq": 27.0, "sq": 78.0, "rq": 32.9}, "ade20k": {"pq": 41.9, "sq": 78.2, "rq": 50.2}},  # table 5
    ),
    ("RN50", "coco_panoptic"): _zoo("RN50", (17.9, 9.5, 23.3), (50.7, 40.7, 58.8)),
    ("RN101", "coco_panoptic"): _zoo("RN101", (19.1, 10.2, 24.0), (51.4, 41.6, 58.9)),
    ("RN50x4", "coco_panoptic"): _zoo("RN50x4", (21.8, 11.7, 26.8), (52.1, 42.8, 60.4)),
    ("RN50x16", "coco_panoptic"): _zoo("RN50x16", (22.5, 13.6, 29.4), (54.4, 45.0, 63.3)),
    ("RN50x64", "coco_panoptic"): _zoo("RN50x64", (22.8, 13.6, 28.4), (55.6, 46.4, 65.3)),
}
"""By CLIP model and training vocabulary."""


def reported_for(trunk: ImageDescription, training_vocabulary: str) -> Reported:
    """Returns the scores of the model with this trunk and training vocabulary, or else those of the paper's main model."""
    for (clip, vocabulary), reported in REPORTED.items():
        if vocabulary == training_vocabulary and CLIP_MODELS[clip].image == trunk:
            return reported
    return PAPER


class SweepRow(NamedTuple):
    """One way to classify masks."""

    cells: tuple[str | float, ...]
    """Its values in the columns of the sweep."""
    ensemble: Mapping[str, Any]
    """Changes to the model's own ensemble."""
    reported: Mapping[str, tuple[float, ...]]
    """The paper's scores for ConvNeXt-L in percent, by benchmark: the first ones of SCORES."""
    short_side: int | None = None
    """The short side of the image that CLIP classifies on, in pixels; None uses the image in which masks are found."""
    second_clip: bool = False
    """True if the second checkpoint's CLIP classifies."""


SCORES = ("pq", "pq_seen", "pq_unseen")
"""The scores of each row of a sweep."""


class Sweep(NamedTuple):
    """A table that compares ways to classify the same masks, in one pass over the images."""

    columns: tuple[str, ...]
    rows: tuple[SweepRow, ...]

    def ways(self, own: EnsembleDescription, void_trust: float = 0.0) -> list[Way]:
        """Returns the rows as the engine reads them, for a model with this ensemble."""
        return [
            Way(dataclasses.replace(own, **row.ensemble), row.short_side, row.second_clip, void_trust)
            for row in self.rows
        ]


def _ensemble(alpha: float, beta: float, arithmetic: float, geometric: float) -> list[SweepRow]:
    reported = {"arithmetic": arithmetic, "geometric": geometric}
    return [
        SweepRow((alpha, beta, mode), {"alpha": alpha, "beta": beta, "mode": mode}, {"ade20k": (pq,)})
        for mode, pq in reported.items()
    ]


def _resolution(short_side: int, reported: Mapping[str, tuple[float, ...]], second_clip: bool = False) -> SweepRow:
    cells = ("second" if second_clip else "own", short_side)
    return SweepRow(cells, {"alpha": 1.0, "beta": 1.0}, reported, short_side, second_clip)


def _classifiers(in_vocab: bool, out_vocab: str, *ade20k: float) -> SweepRow:
    weight = {(True, "-"): 0.0, (False, "second"): 1.0}.get((in_vocab, out_vocab))
    changes = {} if weight is None else {"alpha": weight, "beta": weight}
    cells = ("own" if in_vocab else "-", out_vocab)
    return SweepRow(cells, changes, {"ade20k": ade20k}, second_clip=out_vocab == "second")


SWEEPS: dict[str, Sweep] = {
    # Table 8.
    "ensemble": Sweep(
        ("alpha", "beta", "mode"),
        (
            *_ensemble(0.0, 0.0, 17.8, 17.8),
            *_ensemble(1.0, 1.0, 21.9, 21.9),
            *_ensemble(0.0, 1.0, 25.3, 25.3),
            *_ensemble(1.0, 0.0, 17.5, 17.5),
            *_ensemble(0.5, 0.5, 25.0, 25.3),
            *_ensemble(0.5, 0.6, 25.6, 26.4),
            *_ensemble(0.5, 0.7, 25.5, 26.7),
            *_ensemble(0.5, 0.8, 25.4, 26.6),
            *_ensemble(0.4, 0.6, 25.1, 25.6),
            *_ensemble(0.4, 0.7, 25.6, 26.4),
            *_ensemble(0.4, 0.8, 25.6, 26.8),
            *_ensemble(0.4, 0.9, 25.4, 25.8),
        ),
    ),
    # Table 9, CLIP alone as the classifier. The paper classified other masks, so its absolute scores differ.
    "resolution": Sweep(
        ("CLIP", "short side"),
        tuple(
            _resolution(short_side, {"coco": (coco,), "ade20k": (ade20k,)})
            for short_side, coco, ade20k in (
                (224, 17.3, 9.3),
                (448, 23.5, 12.8),
                (672, 27.0, 14.8),
                (896, 28.6, 16.0),
                (1120, 29.3, 15.9),
            )
        ),
    ),
    # Table 6: a checkpoint with a trained trunk, and a second one with a frozen trunk. The table's last row, everything frozen,
    # is the second checkpoint's own evaluation.
    "classifiers": Sweep(
        ("in-vocabulary", "out-of-vocabulary"),
        (
            _classifiers(True, "-", 17.7, 37.9, 2.6),
            _classifiers(False, "second", 21.1, 32.4, 12.6),
            _classifiers(True, "own", 24.1, 38.9, 13.1),
            _classifiers(True, "second", 25.4, 40.0, 14.6),
        ),
    ),
}

WORLD_SIDES = (128, 192, 256, 320, 384, 512)
"""Table 9's sizes for the miniature world, whose CLIP learns on pictures of 64 and 128 pixels."""


def sweep_of(name: str, benchmark: str, *, second_clip: bool) -> Sweep:
    """Returns the sweep of this name, as it is on this benchmark.

    second_clip: whether a second checkpoint is given; "resolution" then has rows for both CLIPs, as table 9 does.
    """
    sweep = SWEEPS[name]
    if name != "resolution":
        return sweep
    rows = sweep.rows
    if benchmark == WORLD:
        rows = tuple(_resolution(short_side, {}) for short_side in WORLD_SIDES)
    if second_clip:
        rows += tuple(_resolution(row.short_side, {}, second_clip=True) for row in rows if row.short_side)
    return sweep._replace(rows=rows)
