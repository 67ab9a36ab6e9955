"""Runs a part in a process of its own, with a time limit."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.device.child import UNFINISHED
from tests.device.parts import Part

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = "FCCLIP_DEVICE_FOLDER"
"""The environment variable with the folder of all parts' rows."""
GOLDEN = "FCCLIP_DEVICE_GOLDEN"
"""The environment variable with the folders that the part parity compares, which `os.pathsep` separates."""
DONE, FAILED, KILLED, OVER, PARTLY, NOT_RUN = "done", "failed", "killed", "over its limit", "partly done", "not run"
LAST_LINES = 12
Row = dict[str, Any]


class Outcome(NamedTuple):
    """What became of a part."""

    name: str
    status: str
    seconds: float
    limit: float
    """The seconds that it had."""
    rows: list[Row]
    """Its figures, as far as it came."""
    message: str
    """The last lines of its stderr unless it is done, or why it was not run."""


def run_part(part: Part, *, limit: float, small: bool, folder: pathlib.Path, environment: Mapping[str, str]) -> Outcome:
    """Runs a part, and kills it with all of its processes when the limit has passed or the caller is interrupted.

    folder: receives NAME.rows, NAME.out and NAME.err.
    environment: of all parts; the part's own is added.
    """
    rows, out, err = (folder / f"{part.name}.{kind}" for kind in ("rows", "out", "err"))
    rows.unlink(missing_ok=True)  # an earlier run's
    command = [sys.executable, "-m", "tests.device.child", part.function, str(rows), str(limit)]
    begin = time.monotonic()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command + ["--small"] * small,
            cwd=ROOT,
            env=os.environ | environment | {FOLDER: str(folder)} | part.environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Also processes that the part left behind: they would hold the device's memory.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - begin
    figures, damage = read_rows(rows)
    message = "\n".join(err.read_text(errors="replace").splitlines()[-LAST_LINES:])
    if code is None:
        status, message = OVER, f"{message}\nkilled after {limit:.0f} s".lstrip()
    elif code < 0:
        status, message = KILLED, f"{message}\nkilled by {signal.Signals(-code).name}".lstrip()
    elif code == UNFINISHED and not damage:
        status, message = PARTLY, f"stopped before its limit of {limit:.0f} s with more to do"
    elif code or damage:
        status, message = FAILED, f"{message}\n{damage}".strip()
    elif not figures:
        status, message = FAILED, f"{message}\nit gave no figures".strip()
    else:
        status, message = DONE, ""
    return Outcome(part.name, status, seconds, limit, figures, message)


def read_rows(path: pathlib.Path) -> tuple[list[Row], str]:
    """Returns the complete rows of a part, and a sentence about a damaged one."""
    if not path.is_file():
        return [], ""
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            return rows, f"row {len(rows) + 1} is damaged: {line[:80]!r}"
        rows.append(row)
    return rows, ""
