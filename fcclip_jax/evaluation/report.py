"""Formats an evaluation's report: a JSON file with all scores, and a table that compares them with the paper's."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fcclip_jax.evaluation.paper_tables import SCORES, Sweep

NAMES = {
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
    "pq_things": "PQ things",
    "pq_stuff": "PQ stuff",
    "pq_seen": "PQ seen",
    "pq_unseen": "PQ unseen",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_seen": "AP seen",
    "ap_unseen": "AP unseen",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "miou": "mIoU",
    "miou_seen": "mIoU seen",
    "miou_unseen": "mIoU unseen",
    "fwiou": "fwIoU",
    "macc": "mACC",
    "pacc": "pACC",
}
"""Scores in the order of the table. report.json also has scores of other groups of classes."""


def to_json(report: Mapping[str, Any]) -> bytes:
    """Returns the report as JSON. NaN, such as the IoU of a class that does not occur, becomes null; infinity is an error."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(part) for part in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return (json.dumps(plain(report), indent=1, allow_nan=False) + "\n").encode()


def table(title: str, scores: Mapping[str, float], reported: Mapping[str, float], reported_model: str) -> str:
    """Returns a Markdown table of measured and reported scores, in percent."""
    rows = [("", "measured", f"reported ({reported_model})" if reported else "reported")]
    for key, name in NAMES.items():
        if key in scores:
            rows.append((name, _measured(scores[key]), f"{reported[key]:.1f}" if key in reported else ""))
    return markdown(title, rows, words=1)


def sweep_table(title: str, sweep: Sweep, found: Sequence[Mapping[str, Any]], benchmark: str) -> str:
    """Returns a Markdown table with a row for each way, in percent, and the paper's scores if it reports this benchmark."""
    names = [NAMES[name] for name in SCORES]
    published = max(len(row.reported.get(benchmark, ())) for row in sweep.rows)
    head = (*sweep.columns, *names, *(f"{name}, reported" for name in names[:published]))
    rows = [head]
    for row, scores in zip(sweep.rows, found, strict=True):
        measured = [_measured(scores[name]) for name in SCORES]
        values = [f"{value:.1f}" for value in row.reported.get(benchmark, ())]
        rows.append((*map(str, row.cells), *measured, *values, *[""] * (published - len(values))))
    return markdown(title, rows, words=len(sweep.columns))


def _measured(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def markdown(title: str, rows: Sequence[Sequence[str]], words: int) -> str:
    """Returns a table whose first row is the head; the first `words` columns are text, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if place < words else ">" for place in range(len(widths))]
    lines = [
        "| " + " | ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)) + " |"
        for row in rows
    ]
    rules = (
        "-" * (width + 2) if side == "<" else "-" * (width + 1) + ":" for side, width in zip(sides, widths, strict=True)
    )
    return "\n".join([f"**{title}**", "", lines[0], f"|{'|'.join(rules)}|", *lines[1:]]) + "\n"
