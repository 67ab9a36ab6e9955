"""How the two classifiers mix: the paper's table 8, all of it over one forward pass an image."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fcclip_jax.data.benchmarks import Examples
from fcclip_jax.evaluation.log import Line
from fcclip_jax.evaluation.scores import panoptic_counts, panoptic_rows
from fcclip_jax.evaluators import panoptic
from fcclip_jax.evaluators.panoptic import PanopticCounts, Truth
from fcclip_jax.models.descriptions import EnsembleDescription
from fcclip_jax.results import Result

MODES = ("arithmetic", "geometric")


class Row(NamedTuple):
    alpha: float
    beta: float
    reported: tuple[float, float]
    """PQ on ADE20K, arithmetic and geometric, of the ConvNeXt-L checkpoint."""


ROWS = (
    Row(0.0, 0.0, (17.8, 17.8)),
    Row(1.0, 1.0, (21.9, 21.9)),
    Row(0.0, 1.0, (25.3, 25.3)),
    Row(1.0, 0.0, (17.5, 17.5)),
    Row(0.5, 0.5, (25.0, 25.3)),
    Row(0.5, 0.6, (25.6, 26.4)),
    Row(0.5, 0.7, (25.5, 26.7)),
    Row(0.5, 0.8, (25.4, 26.6)),
    Row(0.4, 0.6, (25.1, 25.6)),
    Row(0.4, 0.7, (25.6, 26.4)),
    Row(0.4, 0.8, (25.6, 26.8)),
    Row(0.4, 0.9, (25.4, 25.8)),
)


def mixings(own: EnsembleDescription) -> list[EnsembleDescription]:
    """Both modes of each row, in their order; all else is as in the model's own."""
    return [dataclasses.replace(own, alpha=row.alpha, beta=row.beta, mode=mode) for row in ROWS for mode in MODES]


def sweep_line(index: int, examples: Examples, truth: Truth, results: Sequence[Result]) -> Line:
    """An image's line: "sweep" has a mixing's "panoptic" (see evaluation.scores) each."""
    classes = len(examples.vocabulary.classes)
    rows = [panoptic_rows(truth, result, classes) for result in results]
    return {"index": index, "image_id": examples.image_ids[index], "sweep": rows}


def summarize(lines: Sequence[Line], examples: Examples) -> list[dict[str, Any]]:
    """PQ of each row in percent, by mode; None where no class occurs."""
    classes = len(examples.vocabulary.classes)
    found = []
    for place, mixing in enumerate(mixings(EnsembleDescription())):
        total = PanopticCounts.zeros(classes)
        for line in lines:
            total = total.plus(panoptic_counts({"panoptic": line["sweep"][place]}, classes))
        quality = panoptic.quality(total)[:, 0]
        pq = float(100 * np.nanmean(quality)) if not np.isnan(quality).all() else None
        found.append({"alpha": mixing.alpha, "beta": mixing.beta, "mode": mixing.mode, "pq": pq})
    return found


def table(title: str, found: Sequence[dict[str, Any]], *, reported: bool) -> str:
    """Markdown.

    reported: whether these are the images that the paper's figures are of.
    """
    head = "| alpha | beta | arithmetic PQ | geometric PQ |"
    rule = "|---:|---:|---:|---:|"
    if reported:
        head, rule = head + " reported, arithmetic | geometric |", rule + "---:|---:|"
    lines = [f"**{title}**", "", head, rule]
    for row, pair in zip(ROWS, zip(found[::2], found[1::2], strict=True), strict=True):
        values = ["-" if each["pq"] is None else f"{each['pq']:.2f}" for each in pair]
        cells = [f"{row.alpha}", f"{row.beta}", *values]
        cells += [f"{value:.1f}" for value in row.reported] if reported else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
