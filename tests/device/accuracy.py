"""Compares the model on the device with the official code's numbers, and lower precisions with float32."""

import re
from collections.abc import Iterator

from tests.device.running import ROOT, Row

GOLDEN = ROOT / "tests" / "golden"


def parity(small: bool) -> Iterator[Row]:
    """Yields the counts and the largest errors of `python -m tests.parity tests/golden`."""
    from tests.parity.__main__ import main

    lines: list[str] = []
    code = main([str(GOLDEN)], lines.append)
    print("\n".join(lines))
    counts = re.fullmatch(r"(\d+) compared, (\d+) fall short, (\d+) .*", lines[-1])
    yield dict(zip(("compared", "fall short", "not compared"), map(int, counts.groups()), strict=True))
    for line in lines:
        if line.startswith("largest errors of "):
            title, errors = line.removeprefix("largest errors of ").split(": ", 1)
            yield {"file": title, "largest errors": errors}
    for line in lines:
        if line.endswith("FALLS SHORT") or "FAILED" in line:
            yield {"array": " ".join(line.split())[:160]}
    if code:
        raise SystemExit(lines[-1])
