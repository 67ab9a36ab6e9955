"""Makes one result and ends: what `tests.device.inference.start` times. Prints seconds since the interpreter's start."""

import time

BEGIN = time.perf_counter()

import sys

from tests.device import models
from tests.device.inference import SIZE, SMALL_SIZES, photos


def mark(name: str) -> None:
    print(f"{name}, s = {time.perf_counter() - BEGIN:.3f}", flush=True)


def main() -> None:
    small = "--small" in sys.argv
    mark("imported")
    model = models.random(small)
    mark("weights drawn")
    size, sides = next(iter(SMALL_SIZES.items())) if small else (SIZE, {})
    segmenter = models.segmenter(model, small, **sides)
    mark("words embedded")
    segmenter(photos(size, 1)[0])
    mark("first image")
    segmenter(photos(size, 1)[0])
    mark("second image")


if __name__ == "__main__":
    main()
