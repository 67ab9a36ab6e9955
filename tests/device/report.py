"""Checks and times FC-CLIP on an accelerator: `python -m tests.device.report`.

Runs each part (see `tests.device.parts`) in a process of its own with a time limit, prints a table, and writes
OUTPUT/report.json after every part. A part that fails costs only itself; the exit code is then 1. README.md explains how
to run it on a machine without a network.
"""

import datetime
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fcclip_jax import command_line
from tests.device import machine
from tests.device.parts import DEVICE, PARTS, Part
from tests.device.running import DONE, NOT_RUN, Outcome, Row, run_part

LIMIT = 360
LEAST = 15
"""The seconds that must be left of the total limit for a part to begin."""


def main(argv: Sequence[str] | None = None, parts: Sequence[Part] = PARTS, first: Part = DEVICE) -> int:
    """Runs the report and returns its exit code. Tests give other parts."""
    names = [part.name for part in parts]
    parser = command_line.ArgumentParser(prog="python -m tests.device.report", description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="small models and sizes, which also a CPU manages")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS", help="total (default: %(default)s)")
    parser.add_argument("--parts", metavar="NAME[,NAME]", help=f"only these, of {', '.join(names)}")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("out/device"), metavar="DIR", help="(default: %(default)s)"
    )
    options = parser.parse_args(argv)
    chosen = options.parts.split(",") if options.parts else names
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(names)}")
    if options.limit <= 0:
        parser.error(f"--limit is {options.limit:g}; it is a number of seconds above 0")
    # A terminated report ends its part too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = options.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return report([part for part in parts if part.name in chosen], first, options.limit, options.small, folder)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return command_line.INTERRUPTED


def report(parts: Sequence[Part], first: Part, limit: float, small: bool, folder: pathlib.Path) -> int:
    """Runs `first` and then the parts within the limit."""
    begin = time.monotonic()
    facts: dict[str, Any] = {
        "begun": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "small": small,
        "limit": limit,
        "machine": machine.describe_machine(),
    }
    print("  ".join(f"{name} {value}" for name, value in facts["machine"].items() if value), flush=True)
    if missing := machine.missing_packages():
        print(f"Not installed: {', '.join(missing)}. Parts that need them will fail.", flush=True)
    environment = common_environment(folder)
    outcomes: list[Outcome] = []
    for part in (first, *parts):
        left = limit - (time.monotonic() - begin)
        if left < LEAST and outcomes:
            outcome = Outcome(part.name, NOT_RUN, 0.0, 0.0, [], f"{max(left, 0):.0f} s were left of {limit:g} s")
        else:
            allowed = min(part.limit, left)
            outcome = run_part(part, limit=allowed, small=small, folder=folder, environment=environment)
        outcomes.append(outcome)
        write(folder / "report.json", facts | {"parts": [outcome._asdict() for outcome in outcomes]})
        print("\n".join(lines_of(outcome)), flush=True)
        if part is first and not small and outcome.rows and outcome.rows[0].get("platform") == "cpu":
            print("error: JAX finds no accelerator; give --small for a CPU", file=sys.stderr)
            return command_line.REFUSED
    print(f"\n{time.monotonic() - begin:.0f} s of {limit:g} s; everything is in {folder}")
    for outcome in outcomes:
        print(f"  {outcome.name:16} {outcome.status:16} {outcome.seconds:5.0f} s   {len(outcome.rows)} rows")
    again = [outcome.name for outcome in outcomes[1:] if outcome.status != DONE]
    if again:
        print(f"To run the others again: --parts {','.join(again)}")
    return command_line.DONE if all(outcome.status == DONE for outcome in outcomes) else command_line.INCOMPLETE


def common_environment(folder: pathlib.Path) -> dict[str, str]:
    """Returns the environment of all parts: they follow one another on one device, and share compiled programs."""
    return {
        "PYTHONUNBUFFERED": "1",
        "FCCLIP_JAX_CACHE": str(folder / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache" / "xla"),
        # PyTorch and JAX share the memory in some parts.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1"),
    }


def write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Replaces the file, so that it is complete at any time."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def lines_of(outcome: Outcome) -> list[str]:
    """Returns a part's lines: its status, a table of its rows, and what went wrong."""
    lines = [f"\n{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s of {outcome.limit:.0f} s"]
    lines += table(outcome.rows)
    lines += [f"    | {line}" for line in outcome.message.splitlines()]
    return lines


def table(rows: Sequence[Row]) -> list[str]:
    """Returns one line for each row, under a heading wherever the columns change."""
    lines: list[str] = []
    groups: list[list[Row]] = []
    for row in rows:
        if groups and list(groups[-1][0]) == list(row):
            groups[-1].append(row)
        else:
            groups.append([row])
    for group in groups:
        cells = [list(group[0]), *([text(value) for value in row.values()] for row in group)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines += [
            "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells
        ]
    return lines


def text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
