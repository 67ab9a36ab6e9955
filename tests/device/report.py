"""Checks and times FC-CLIP on an accelerator: `python -m tests.device.report`.

Runs each part (see `tests.device.parts`) in a process of its own with a time limit, prints a table, and writes
OUTPUT/report.json after every part. A part that fails costs only itself; the exit code is then 1. With --rest, runs the
parts that the report in OUTPUT lacks. README.md explains how to run it on a machine without a network.
"""

import dataclasses
import datetime
import json
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fcclip_jax import command_line, files
from tests.device import machine
from tests.device.parts import DEVICE, PARTS, Part
from tests.device.running import DONE, FAILED, GOLDEN, KILLED, NOT_RUN, OVER, ROOT, Outcome, Row, run_part

LIMIT = 360
LEAST = 15
"""The seconds that must be left of the total limit for a part to begin."""


def main(argv: Sequence[str] | None = None, parts: Sequence[Part] = PARTS, first: Part = DEVICE) -> int:
    """Runs the report and returns its exit code. Tests give other parts."""
    names = [part.name for part in parts]
    parser = command_line.ArgumentParser(prog="python -m tests.device.report", description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="small models and sizes, which also a CPU manages")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS", help="total (default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--parts", metavar="NAME[,NAME]", help=f"only these, of {', '.join(names)}")
    which.add_argument(
        "--rest", action="store_true", help="the parts that the report in --output has not, or not all of"
    )
    parser.add_argument(
        "--golden",
        type=pathlib.Path,
        action="append",
        default=[],
        metavar="DIR",
        help="another folder that the part parity compares, beside tests/golden; repeat it for several",
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("out/device"), metavar="DIR", help="(default: %(default)s)"
    )
    options = parser.parse_args(argv)
    chosen = list(dict.fromkeys(options.parts.split(","))) if options.parts else names
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(names)}")
    if not 0 < options.limit < math.inf:
        parser.error(f"--limit is {options.limit:g}; it is a number of seconds above 0")
    if missing := [folder for folder in options.golden if not folder.is_dir()]:
        parser.error(f"--golden: there is no folder {missing[0]}")
    folder = options.output.resolve()
    try:
        files.check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        found = read(folder / "report.json")
    except (OSError, ValueError) as error:
        parser.error(f"--output: {error}")
    begun = Report(options.small)
    if options.rest:
        if found is None:
            parser.error(f"--rest: {folder} has no report; run the command without --rest first")
        begun = found
        if begun.small != options.small:
            parser.error(f"--rest: the report in {folder} was made {'with' if begun.small else 'without'} --small")
        chosen = begun.lacking(names)
    # A terminated report ends its part too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    environment = common_environment(folder, [ROOT / "tests" / "golden", *options.golden])
    try:
        by_name = {part.name: part for part in parts}
        chosen_parts = [begun.with_more_time(by_name[name]) for name in chosen]
        return run([first, *chosen_parts], options.limit, begun, folder, environment)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return command_line.INTERRUPTED


@dataclasses.dataclass
class Report:
    """The content of report.json."""

    small: bool
    runs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """The time, the machine and the limit of each run of the command."""
    parts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """The fields of `Outcome`, and the number of the run, from 0. By the part's name."""

    def add(self, outcome: Outcome) -> None:
        """Adds a part's outcome, unless it is incomplete and an earlier run has more of its figures."""
        if outcome.status == DONE or len(outcome.rows) >= len(self.parts.get(outcome.name, {}).get("rows", ())):
            self.parts[outcome.name] = outcome._asdict() | {"run": len(self.runs) - 1}

    def lacking(self, names: Sequence[str]) -> list[str]:
        """Returns the parts that are not done; those that failed, and may fail again, at the end."""
        statuses = {name: part["status"] for name, part in self.parts.items()}
        lacking = [name for name in names if statuses.get(name) != DONE]
        return sorted(lacking, key=lambda name: statuses.get(name) in (FAILED, KILLED))

    def with_more_time(self, part: Part) -> Part:
        """Doubles the limit of a part that was over it."""
        over = part.name in self.parts and self.parts[part.name]["status"] == OVER
        return part._replace(limit=2 * part.limit) if over else part


def run(
    parts: Sequence[Part], limit: float, report: Report, folder: pathlib.Path, environment: Mapping[str, str]
) -> int:
    """Runs the parts within the limit and adds them to the report. The first describes the device."""
    begin = time.monotonic()
    described = machine.describe_machine()
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    report.runs.append({"begun": moment, "limit": limit, "machine": described})
    print("  ".join(f"{name} {value}" for name, value in described.items() if value), flush=True)
    if missing := machine.missing_packages():
        print(f"Not installed, so that parts that need them will fail: {' '.join(missing)}", flush=True)
    outcomes: list[Outcome] = []
    for i, part in enumerate(parts):
        left = limit - (time.monotonic() - begin)
        if left < LEAST and outcomes:
            outcome = Outcome(part.name, NOT_RUN, 0.0, 0.0, [], f"{max(left, 0):.0f} s were left of {limit:g} s")
        else:
            spare = left - sum(later.limit for later in parts[i + 1 :])
            allowed = min(max(part.limit, spare), left)
            outcome = run_part(part, limit=allowed, small=report.small, folder=folder, environment=environment)
        outcomes.append(outcome)
        report.add(outcome)
        write(folder / "report.json", dataclasses.asdict(report))
        print("\n".join(lines_of(outcome)), flush=True)
        if not report.small and i == 0 and outcome.rows and outcome.rows[0].get("platform") == "cpu":
            print("error: JAX finds no accelerator; give --small for a CPU", file=sys.stderr)
            return command_line.REFUSED
    print(f"\n{time.monotonic() - begin:.0f} s of {limit:g} s; everything is in {folder}")
    for outcome in outcomes:
        print(f"  {outcome.name:16} {outcome.status:16} {outcome.seconds:5.0f} s   {len(outcome.rows)} rows")
    if all(outcome.status == DONE for outcome in outcomes):
        return command_line.DONE
    print("To run the others: the same command with --rest, and without --parts")
    return command_line.INCOMPLETE


def common_environment(folder: pathlib.Path, golden: Sequence[pathlib.Path]) -> dict[str, str]:
    """Returns the environment of all parts: they follow one another on one device, and share compiled programs.

    golden: the folders that the part parity compares.
    """
    return {
        "PYTHONUNBUFFERED": "1",
        "FCCLIP_JAX_CACHE": str(folder / "cache"),
        # XLA's choices of algorithms are kept there too: JAX's jax_persistent_cache_enable_xla_caches.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache" / "xla"),
        GOLDEN: os.pathsep.join(str(path.resolve()) for path in golden),
        # PyTorch and JAX share the memory in some parts.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1"),
    }


def read(path: pathlib.Path) -> Report | None:
    """Reads a report; None if there is no file.

    Raises:
        ValueError: the file is not a report.
    """
    if not path.exists():
        return None
    try:
        report = Report(**json.loads(path.read_text()))
        complete = all({"status", "rows", "run"} <= part.keys() for part in report.parts.values())
        if complete and isinstance(report.runs, list):
            return report
    except (AttributeError, TypeError, ValueError):
        pass
    raise ValueError(f"{path} is not a report of this command; remove it, or give another folder")


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
