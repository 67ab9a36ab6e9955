"""What an evaluation says in the end: a JSON file with every figure, and a table beside the paper's."""

import json
import math
from collections.abc import Mapping
from typing import Any

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
"""Scores in the order of the table."""


def to_json(report: Mapping[str, Any]) -> bytes:
    """JSON has no NaN: what has no value, such as the IoU of a class that does not occur, is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(part) for part in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return (json.dumps(plain(report), indent=1) + "\n").encode()


def table(title: str, scores: Mapping[str, float], reported: Mapping[str, float]) -> str:
    """Markdown: measured and reported, in percent."""
    rows = [("", "measured", "reported")]
    for key, name in NAMES.items():
        if key in scores:
            published = f"{reported[key]:.1f}" if key in reported else ""
            measured = "-" if math.isnan(scores[key]) else f"{scores[key]:.2f}"
            rows.append((name, measured, published))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"| {row[0]:<{widths[0]}} | {row[1]:>{widths[1]}} | {row[2]:>{widths[2]}} |" for row in rows]
    rule = f"|{'-' * (widths[0] + 2)}|{'-' * (widths[1] + 1)}:|{'-' * (widths[2] + 1)}:|"
    return "\n".join([f"**{title}**", "", lines[0], rule, *lines[1:]]) + "\n"
