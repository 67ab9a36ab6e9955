"""Runs one part: `python -m tests.device.child MODULE:FUNCTION ROWS SECONDS [--small]`.

Writes each row of the part to the file ROWS, one JSON object a line. The exit code is UNFINISHED if the part stopped
before its limit with more to do. Two seconds before its limit, the stack of every thread goes to stderr: it shows what
the part was doing when it is killed.
"""

import argparse
import faulthandler
import importlib
import json
import math
import pathlib
import sys
from typing import Any

from tests.device import clock

UNFINISHED = 75


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.device.child", description=__doc__.split("\n")[0])
    parser.add_argument("function", metavar="MODULE:FUNCTION")
    parser.add_argument("rows", metavar="ROWS", type=pathlib.Path)
    parser.add_argument("seconds", metavar="SECONDS", type=float)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(options.seconds - 2, 0.1))
    clock.start(options.seconds - 3)
    module, name = options.function.split(":")
    function = getattr(importlib.import_module(module), name)
    with options.rows.open("w") as file:
        try:
            for row in function(options.small):
                file.write(json.dumps(plain(row), allow_nan=False) + "\n")
                file.flush()
        except clock.OutOfTime:
            return UNFINISHED
    return 0


def plain(value: Any) -> Any:
    """Returns a value that JSON can hold: NumPy's scalars become Python's; NaN and infinities, which JSON lacks, text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


if __name__ == "__main__":
    sys.exit(main())
