"""The paper's comparisons of ways to classify the same masks: tables 6, 8 and 9, each in one pass over the images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fcclip_jax.evaluation.benchmarks import Examples
from fcclip_jax.evaluation.log import Line
from fcclip_jax.evaluation.scores import panoptic_rows, total_counts
from fcclip_jax.inference.results import Result
from fcclip_jax.inference.sweep import Way
from fcclip_jax.metrics import panoptic
from fcclip_jax.metrics.panoptic import Truth
from fcclip_jax.models.descriptions import EnsembleDescription


class Row(NamedTuple):
    """One way, as a change of the model's own."""

    cells: tuple[str | float, ...]
    """What the table calls it."""
    ensemble: Mapping[str, Any]
    reported: Mapping[str, tuple[float, ...]]
    """The sweep's scores in percent by benchmark, for ConvNeXt-L."""
    short_side: int | None = None
    second_trunk: bool = False


class Sweep(NamedTuple):
    columns: tuple[str, ...]
    scores: tuple[str, ...]
    rows: tuple[Row, ...]

    def ways(self, own: EnsembleDescription) -> list[Way]:
        return [Way(dataclasses.replace(own, **row.ensemble), row.short_side, row.second_trunk) for row in self.rows]


def _ensemble(alpha: float, beta: float, arithmetic: float, geometric: float) -> list[Row]:
    reported = {"arithmetic": arithmetic, "geometric": geometric}
    return [
        Row((alpha, beta, mode), {"alpha": alpha, "beta": beta, "mode": mode}, {"ade20k": (pq,)})
        for mode, pq in reported.items()
    ]


def _resolution(short_side: int, coco: float, ade20k: float) -> Row:
    return Row((short_side,), {"alpha": 1.0, "beta": 1.0}, {"coco": (coco,), "ade20k": (ade20k,)}, short_side)


def _classifiers(in_vocab: bool, out_vocab: str, *ade20k: float) -> Row:
    weight = {(True, "-"): 0.0, (False, "second"): 1.0}.get((in_vocab, out_vocab))
    changes = {} if weight is None else {"alpha": weight, "beta": weight}
    cells = ("own" if in_vocab else "-", out_vocab)
    return Row(cells, changes, {"ade20k": ade20k}, second_trunk=out_vocab == "second")


SWEEPS: dict[str, Sweep] = {
    # Table 8.
    "ensemble": Sweep(
        ("alpha", "beta", "mode"),
        ("pq",),
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
    # Table 9, CLIP alone as the classifier. The paper's masks were other ones, so its figures are of another height.
    "resolution": Sweep(
        ("short side",),
        ("pq",),
        (
            _resolution(224, 17.3, 9.3),
            _resolution(448, 23.5, 12.8),
            _resolution(672, 27.0, 14.8),
            _resolution(896, 28.6, 16.0),
            _resolution(1120, 29.3, 15.9),
        ),
    ),
    # Table 6: a checkpoint whose trunk was trained, and a second one whose trunk was not. Its last row, all of it frozen, is
    # the second checkpoint's own evaluation.
    "classifiers": Sweep(
        ("in-vocabulary", "out-of-vocabulary"),
        ("pq", "pq_seen", "pq_unseen"),
        (
            _classifiers(True, "-", 17.7, 37.9, 2.6),
            _classifiers(False, "second", 21.1, 32.4, 12.6),
            _classifiers(True, "own", 24.1, 38.9, 13.1),
            _classifiers(True, "second", 25.4, 40.0, 14.6),
        ),
    ),
}


def sweep_line(index: int, examples: Examples, truth: Truth, results: Sequence[Result]) -> Line:
    """An image's line: "sweep" has a way's "panoptic" (see evaluation.scores) each."""
    classes = len(examples.vocabulary.classes)
    rows = [panoptic_rows(truth, result, classes) for result in results]
    return {"index": index, "image_id": examples.image_ids[index], "sweep": rows}


def summarize(sweep: Sweep, lines: Sequence[Line], examples: Examples, seen: np.ndarray) -> list[dict[str, Any]]:
    """Each row's cells by their columns, and its scores in percent: NaN where no such class occurs.

    seen: which classes occur in training, [K].
    """
    classes = len(examples.vocabulary.classes)
    among = {"pq": seen | True, "pq_seen": seen, "pq_unseen": ~seen}
    found = []
    for place, row in enumerate(sweep.rows):
        total = total_counts([{"panoptic": line["sweep"][place]} for line in lines], classes)
        quality = panoptic.quality(total)[:, 0]
        scores = {}
        for name in sweep.scores:
            occurring = quality[among[name] & ~np.isnan(quality)]
            scores[name] = float(100 * occurring.mean()) if len(occurring) else float("nan")
        found.append({**dict(zip(sweep.columns, row.cells, strict=True)), **scores})
    return found
