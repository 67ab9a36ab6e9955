"""Draws the sprites from published sets of emoji.

    pip install resvg-py==0.5.0
    python -m fcclip_jax.world.draw_sprites --sets FOLDER

FOLDER holds, unpacked as NAME-VERSION/, Iconify's packages of the sets in SETS: one icons.json with the drawings of a
set as SVG, and chars.json with the name of each code point. The archives in fcclip_jax/world/sprites are replaced; with
these versions, Pillow 12.0 and libwebp 1.6 the result is the same byte for byte.
"""

import dataclasses
import io
import json
import pathlib
import sys
import zipfile
from collections.abc import Iterator

from PIL import Image

from fcclip_jax import command_line
from fcclip_jax.files import write_files
from fcclip_jax.world.sprites import LONGEST_SIDE
from fcclip_jax.world.words import CODE_POINTS

FOLDER = pathlib.Path(__file__).parent / "sprites"
RENDERED = 512
"""Side of the rendered drawing in pixels. Shrinking it by four and more leaves smooth edges."""
QUALITY = 85
"""Of lossy WebP, for the colours; alpha is lossless."""


@dataclasses.dataclass(frozen=True)
class EmojiSet:
    """One design: where its drawings are, and which things it may lack."""

    package: str
    complete: bool = True
    unusable: frozenset[str] = frozenset()


SETS = {
    "twemoji": EmojiSet("iconify-json-twemoji-1.2.5"),
    "fluent": EmojiSet("iconify-json-fluent-emoji-flat-1.2.6"),
    "openmoji": EmojiSet("iconify-json-openmoji-1.2.29"),
    "emojione": EmojiSet("iconify-json-emojione-1.2.3", complete=False),
    "noto": EmojiSet("iconify-json-noto-1.2.9"),
}


class Drawings:
    """The drawings of one unpacked package, found by code point.

    Raises:
        OSError: a file of the package is missing.
    """

    def __init__(self, folder: pathlib.Path):
        self._icons = json.loads((folder / "icons.json").read_text("utf-8"))
        names = json.loads((folder / "chars.json").read_text("utf-8"))
        self.names = {code_point.replace("-fe0f", ""): name for code_point, name in names.items()} if names else {}

    def svg(self, name: str) -> str | None:
        """Returns the drawing of this name as an SVG document, or None if the set lacks it."""
        name = self._icons.get("aliases", {}).get(name, {}).get("parent", name)
        icon = self._icons["icons"].get(name)
        if icon is None:
            return None
        width, height = icon.get("width", self._icons["width"]), icon.get("height", self._icons["height"])
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
        )


def draw(svg: str) -> Image.Image:
    """Renders an SVG document and crops it to the pixels that a mask would have, alpha > 127.

    The longer side of the result is LONGEST_SIDE; Pillow shrinks RGBA with premultiplied alpha.
    """
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED, height=RENDERED))
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    drawing = drawing.crop(drawing.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox())
    scale = LONGEST_SIDE / max(drawing.size)
    size = (max(1, round(scale * drawing.width)), max(1, round(scale * drawing.height)))
    return drawing.resize(size, Image.Resampling.LANCZOS)


def draw_all(sets: dict[str, Drawings]) -> Iterator[tuple[str, str, Image.Image]]:
    """Yields design, word and sprite, design by design.

    Raises:
        ValueError: a complete design lacks a word.
    """
    for design, drawings in sets.items():
        for word, code_point in CODE_POINTS.items():
            if word in SETS[design].unusable:
                continue
            # Sets without code points use the same names as Twemoji does.
            name = drawings.names.get(code_point) or sets["twemoji"].names.get(code_point)
            svg = drawings.svg(name) if name else None
            if svg is not None:
                yield design, word, draw(svg)
            elif SETS[design].complete:
                raise ValueError(f"{SETS[design].package} has no drawing of {word!r}, code point {code_point}")


def pack(sprites: dict[str, Image.Image]) -> bytes:
    """Writes sprites into a zip archive, which depends on nothing else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for word, sprite in sprites.items():
            webp = io.BytesIO()
            sprite.save(webp, "WEBP", quality=QUALITY, alpha_quality=100, method=6)
            archive.writestr(zipfile.ZipInfo(f"{word}.webp"), webp.getvalue())
    return buffer.getvalue()


def main(argv: list[str] | None = None) -> int:
    parser = command_line.ArgumentParser(prog="python -m fcclip_jax.world.draw_sprites", description=__doc__)
    parser.add_argument("--sets", type=pathlib.Path, required=True, metavar="FOLDER", help="the unpacked packages")
    folder = parser.parse_args(argv).sets

    def command() -> int:
        sprites: dict[str, dict[str, Image.Image]] = {design: {} for design in SETS}
        sets = {design: Drawings(folder / entry.package / "package") for design, entry in SETS.items()}
        for design, word, sprite in draw_all(sets):
            sprites[design][word] = sprite
        contents = {FOLDER / f"{design}.zip": pack(found) for design, found in sprites.items()}
        write_files(contents)
        for path, content in contents.items():
            print(f"{path.name}: {len(sprites[path.stem])} sprites, {len(content):,} bytes")
        return command_line.DONE

    return command_line.run(command, memory_advice="close other programs")


if __name__ == "__main__":
    sys.exit(main())
