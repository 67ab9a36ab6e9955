"""Static shapes for images of any size: XLA compiles a program for each shape, so shapes come from short lists."""

import itertools
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fcclip_jax.conventions import STRIDE, round_up

CANVAS_SIDES = (640, 1344, 2048, 4096)
"""Longer sides of output maps. Time follows the image's own size, so few are enough; larger ones are multiples of the last."""

STRIP_SIDE = 4096
STRIP_ASPECTS = (16, 4)
"""Longer side over shorter side of the output maps of strips, such as panoramas, from this longer side on. All other maps are
square: only a large strip is worth a program of its own, since a square around 300x8200 has 61 times as many pixels."""

LANDSCAPES = (4 / 3, 3 / 2, 5 / 3, 2.0, 2.5)
PORTRAITS = (4 / 3, 5 / 3, 2.5)
"""Long side over short side. Most photographs are 4:3 or 3:2: on COCO's sizes the five buckets at 800 / 1333 (three
landscape, two portrait) hold about 2 % more pixels than each image's own multiple of 32."""

CANVAS_COST = 0.1
"""Cost of a canvas pixel relative to a bucket pixel: low, because it is only cleared and fetched."""


class Shapes(NamedTuple):
    """The shapes that a program is compiled for."""

    bucket: tuple[int, int]
    canvas: tuple[int, int]


def image_buckets(short_side: int, max_side: int) -> tuple[tuple[int, int], ...]:
    """Returns the (height, width) of arrays for images resized to these sides, smallest first; each image fits one of them."""

    def long_sides(ratios: Sequence[float]) -> set[int]:
        return {
            round_up(min(int(ratio * short_side + 0.5), max_side), STRIDE) for ratio in (*ratios, max_side / short_side)
        }

    short = round_up(min(short_side, max_side), STRIDE)
    shapes = {(short, long) for long in long_sides(LANDSCAPES)} | {(long, short) for long in long_sides(PORTRAITS)}
    return tuple(sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)))


def choose_bucket(shape: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns the smallest bucket that holds the shape.

    Raises:
        ValueError: no bucket holds it.
    """
    fitting = [bucket for bucket in buckets if bucket[0] >= shape[0] and bucket[1] >= shape[1]]
    if not fitting:
        known = ", ".join(f"{h}x{w}" for h, w in buckets)
        raise ValueError(f"an image of {shape[0]}x{shape[1]} fits none of the buckets {known}; add a larger one")
    return min(fitting, key=lambda bucket: bucket[0] * bucket[1])


def parse_buckets(text: str) -> tuple[tuple[int, int], ...]:
    """Reads "800x1088,1088x800": height x width in pixels, multiples of 32.

    Raises:
        ValueError: the text has another form, or a side is not a multiple of 32.
    """
    buckets = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)x(\d+)\s*", part)
        if not found:
            raise ValueError(f"bucket {part.strip()!r} is not HEIGHTxWIDTH, such as 800x1088")
        buckets.append((int(found[1]), int(found[2])))
    return check_buckets(buckets)


def check_buckets(buckets: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Returns the buckets if every side is a positive multiple of 32.

    Raises:
        ValueError: a side is not.
    """
    for height, width in buckets:
        if min(height, width) < STRIDE or height % STRIDE or width % STRIDE:
            near = "x".join(str(max(round_up(side, STRIDE), STRIDE)) for side in (height, width))
            raise ValueError(f"bucket {height}x{width} has a side that is not a multiple of {STRIDE}; try {near}")
    return tuple(buckets)


def check_size(size: Any) -> tuple[int, int]:
    """Returns an image's (height, width) if they are two positive integers, and no more pixels than 2^30.

    Raises:
        ValueError: they are not.
    """
    try:
        height, width = map(operator.index, size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1 or height * width > 2**30:
        raise ValueError(f"sizes has {size!r}; give the (height, width) of images, in pixels, such as [(480, 640)]")
    return height, width


def canvas(output_hw: tuple[int, int]) -> tuple[int, int]:
    """Returns the (height, width) of the array that holds an output map of this size."""
    shorter, longer = sorted(output_hw)
    sides = itertools.chain(CANVAS_SIDES, itertools.count(2 * CANVAS_SIDES[-1], CANVAS_SIDES[-1]))
    long = next(side for side in sides if side >= longer)
    strips = [long // aspect for aspect in STRIP_ASPECTS if long >= STRIP_SIDE]
    short = next(side for side in (*strips, long) if side >= shorter)
    return (short, long) if output_hw[0] < output_hw[1] else (long, short)


def share_programs(
    counts: Mapping[Shapes, int], buckets: Sequence[tuple[int, int]], limit: int
) -> dict[Shapes, Shapes]:
    """Returns the shapes that replace each of these, so that at most `limit` remain, at little cost in pixels.

    Shapes of landscape and portrait images may have no common bucket; then more than `limit` remain.

    counts: the number of images that need each of the shapes.
    """
    # Repeatedly merges the two groups whose merger costs the least.
    groups = {shapes: [shapes] for shapes in counts}

    def pixels(shapes: Shapes) -> float:
        return shapes.bucket[0] * shapes.bucket[1] + CANVAS_COST * shapes.canvas[0] * shapes.canvas[1]

    def fit_together(a: Shapes, b: Shapes) -> bool:
        height, width = (max(sides) for sides in zip(a.bucket, b.bucket, strict=True))
        return any(bucket[0] >= height and bucket[1] >= width for bucket in buckets)

    def joined(a: Shapes, b: Shapes) -> Shapes:
        height, width = (max(sides) for sides in zip(a.bucket, b.bucket, strict=True))
        rows, columns = (max(sides) for sides in zip(a.canvas, b.canvas, strict=True))
        return Shapes(choose_bucket((height, width), buckets), (rows, columns))

    def cost(a: Shapes, b: Shapes) -> float:
        both = joined(a, b)
        return sum(counts[member] * (pixels(both) - pixels(own)) for own in (a, b) for member in groups[own])

    while len(groups) > limit:
        pairs = [(a, b) for a, b in itertools.combinations(groups, 2) if fit_together(a, b)]
        if not pairs:
            break
        a, b = min(pairs, key=lambda pair: cost(*pair))
        both = joined(a, b)
        members = groups.pop(a) + groups.pop(b)
        groups[both] = groups.get(both, []) + members
    return {member: shapes for shapes, members in groups.items() for member in members}
