"""Fonts for labels in any script: the dependencies' own, and the system's for the characters that it lacks."""

import functools
import pathlib
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import matplotlib
from matplotlib import font_manager, ft2font
from PIL import ImageDraw, ImageFont

DEFAULT = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
"""The font with the most characters among the dependencies': Pillow's own has no accents."""


class Run(NamedTuple):
    """A part of a label, in one font."""

    text: str
    font: ImageFont.FreeTypeFont


def runs(label: str, size: int) -> list[Run]:
    """Returns a label in parts: in the default font, or where that lacks characters in one of the system's that has them.

    size: of the letters, in pixels.
    """
    return [Run(text, ImageFont.truetype(path, size)) for text, path in _parts(label)]


def width(parts: list[Run]) -> float:
    """Returns the width of a label's parts in pixels."""
    return sum(part.font.getlength(part.text) for part in parts)


def draw(pen: ImageDraw.ImageDraw, centre: tuple[float, float], parts: list[Run], color: str) -> None:
    """Draws a label around its centre, (x, y) in pixels."""
    if len(parts) == 1:
        pen.text(centre, parts[0].text, color, parts[0].font, anchor="mm")
        return
    # One baseline for all fonts: that of the default font in the middle.
    ascent, descent = ImageFont.truetype(DEFAULT, parts[0].font.size).getmetrics()
    x, y = centre[0] - width(parts) / 2, centre[1] + (ascent - descent) / 2
    for part in parts:
        pen.text((x, y), part.text, color, part.font, anchor="ls")
        x += part.font.getlength(part.text)


@functools.lru_cache(maxsize=16)
def warn_of_missing(names: tuple[str, ...]) -> None:
    """Warns, once for the same names, of those with characters that no font has; they are drawn as boxes."""
    if missing := missing_letters(names):
        warnings.warn(
            f"{missing}; install one that has, such as Noto (on Debian and Ubuntu: apt install fonts-noto-core fonts-noto-cjk)",
            stacklevel=4,
        )


def missing_letters(names: tuple[str, ...]) -> str:
    """Returns a clause that lists the names with characters that no font has; an empty text if there are none."""
    missing = [name for name in names if any(_system_font(char) is None for char in _lacking(name))]
    if not missing:
        return ""
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return f"no font of this system has all letters of {', '.join(missing[:5])}{more}, so labels show boxes for them"


def _parts(label: str) -> Iterator[tuple[str, pathlib.Path]]:
    """Yields texts and fonts. White space between characters that the default font lacks goes with them."""
    lacking = set(_lacking(label))
    flags = [char in lacking for char in label]
    for space in re.finditer(r"(?<=\S)\s+(?=\S)", label):
        inside = flags[space.start() - 1] and flags[space.end()]
        flags[space.start() : space.end()] = [inside] * len(space[0])
    start = 0
    while start < len(label):
        end, is_lacking = start, flags[start]
        while end < len(label) and flags[end] == is_lacking:
            end += 1
        text, start = label[start:end], end
        if not is_lacking:
            yield text, DEFAULT
        elif (whole := _system_font(text)) is not None:
            yield text, whole
        else:
            yield from ((char, _system_font(char) or DEFAULT) for char in text)


def _lacking(text: str) -> list[str]:
    """Returns the characters that the default font lacks, but for those that take no room."""
    return [char for char in text if ord(char) not in _characters(DEFAULT) and char.isprintable()]


@functools.cache
def _characters(path: pathlib.Path) -> frozenset[int]:
    """Returns the code points of a font's characters; none if the file cannot be read, or draws in no size."""
    try:
        ImageFont.truetype(path, 16)  # fonts of bitmaps, as some emoji are, have a few sizes only
        return frozenset(ft2font.FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@functools.cache
def _system_font(text: str) -> pathlib.Path | None:
    """Returns the system's font that has all these characters, upright and of regular weight if there is one."""
    needed = {ord(char) for char in text}
    return next((path for path in _system_fonts() if needed <= _characters(path)), None)


@functools.cache
def _system_fonts() -> tuple[pathlib.Path, ...]:
    # Last-resort fonts have a box for every character.
    paths = [pathlib.Path(path) for path in font_manager.findSystemFonts()]
    paths = [path for path in paths if "lastresort" not in path.name.lower().replace("-", "").replace(" ", "")]
    return tuple(sorted(paths, key=lambda path: (_oddness(path.stem.lower()), path.name, path)))


def _oddness(name: str) -> int:
    odd = ("bold", "italic", "oblique", "black", "thin", "light", "condensed", "mono", "serif")
    return sum(word in name for word in odd)
