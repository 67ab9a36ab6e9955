"""Draws the sprites from published sets of emoji.

    pip install resvg-py==0.5.0
    python -m fcclip_jax.world.draw_sprites --sets FOLDER

FOLDER holds Iconify's npm packages @iconify-json/NAME, each unpacked as the folder that emoji_sets.py names: icons.json
has the drawings of a set as SVG, and chars.json the name of each code point. The archives in fcclip_jax/world/sprites are
replaced. With these versions, Pillow 13.0 and libwebp 1.6 they come out the same byte for byte.
"""

import argparse
import io
import json
import pathlib
import sys
import zipfile
from collections.abc import Callable, Mapping

from PIL import Image

from fcclip_jax import command_line
from fcclip_jax.files import write_files
from fcclip_jax.world.emoji_sets import SETS
from fcclip_jax.world.sprites import LONGEST_SIDE
from fcclip_jax.world.words import CODE_POINTS

FOLDER = pathlib.Path(__file__).parent / "sprites"
RENDERED = 512
"""Side of the rendered drawing in pixels. Shrinking it by about four leaves smooth edges."""
COLOURS = 56
"""A sprite's colours, alpha included. The drawings are flat: at this number lossless WebP takes half the bytes of lossy
WebP at quality 85, has a higher PSNR (39 dB to 38) and exact masks."""

Render = Callable[[str], bytes]
"""Makes a PNG file of RENDERED pixels a side from an SVG document."""


class Drawings:
    """The drawings of one unpacked package.

    Raises:
        OSError: a file of the package is missing.
    """

    def __init__(self, folder: pathlib.Path):
        self._icons = json.loads((folder / "package" / "icons.json").read_text("utf-8"))
        chars = json.loads((folder / "package" / "chars.json").read_text("utf-8"))
        # Sets without code points have an empty list.
        self.names = {code_point.replace("-fe0f", ""): name for code_point, name in dict(chars).items()}

    def svg(self, name: str) -> str | None:
        """Returns the drawing of this name as an SVG document, or None if the set lacks it."""
        name = self._icons.get("aliases", {}).get(name, {}).get("parent", name)
        icon = self._icons["icons"].get(name)
        if icon is None:
            return None
        box = {"left": 0, "top": 0, "width": self._icons.get("width"), "height": self._icons.get("height")} | icon
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}">{icon["body"]}</svg>'
        )


def renderer() -> Render:
    """Returns the SVG renderer.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import resvg_py
    except ModuleNotFoundError:
        raise ValueError("drawing sprites needs resvg: pip install resvg-py==0.5.0") from None
    return lambda svg: bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED, height=RENDERED))


def make_sprite(png: bytes) -> Image.Image:
    """Crops a drawing to the pixels that its mask will have, alpha > 127, and shrinks it to LONGEST_SIDE."""
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    drawing = drawing.crop(drawing.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox())
    scale = LONGEST_SIDE / max(drawing.size)
    size = (max(1, round(scale * drawing.width)), max(1, round(scale * drawing.height)))
    # Pillow resizes RGBA with premultiplied alpha.
    return drawing.resize(size, Image.Resampling.LANCZOS)


def draw(design: str, sets: Mapping[str, Drawings], render: Render) -> dict[str, Image.Image]:
    """Draws the sprites of one design, by word.

    Raises:
        ValueError: a complete design lacks a word.
    """
    entry, drawings = SETS[design], sets[design]
    sprites = {}
    for word, code_point in CODE_POINTS.items():
        # The sets without code points take Twemoji's names, with hyphens or without, or number their variants.
        name = drawings.names.get(code_point) or sets["twemoji"].names[code_point]
        names = (name, name.replace("-", ""), f"{name}-1")
        if word in entry.overrides:
            names = (entry.overrides[word],)
        svg = next(filter(None, map(drawings.svg, filter(None, names))), None)
        if svg is not None:
            sprites[word] = make_sprite(render(svg))
        elif entry.complete:
            raise ValueError(f"{entry.package} has no drawing of {word!r}, code point {code_point}")
    return sprites


def pack(sprites: Mapping[str, Image.Image]) -> bytes:
    """Writes sprites into a zip archive. It depends on nothing else: every date is 1980."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for word, sprite in sprites.items():
            webp = io.BytesIO()
            sprite.quantize(COLOURS, method=Image.Quantize.FASTOCTREE).convert("RGBA").save(webp, "WEBP", lossless=True)
            info = zipfile.ZipInfo(f"{word}.webp")
            info.create_system = 3
            archive.writestr(info, webp.getvalue())
    return buffer.getvalue()


def main(argv: list[str] | None = None) -> int:
    parser = command_line.ArgumentParser(
        prog="python -m fcclip_jax.world.draw_sprites",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sets", type=pathlib.Path, required=True, metavar="FOLDER", help="the unpacked packages")
    folder = parser.parse_args(argv).sets

    def command() -> int:
        render = renderer()
        sets = {design: Drawings(folder / entry.package) for design, entry in SETS.items()}
        sprites = {design: draw(design, sets, render) for design in SETS}
        archives = {FOLDER / f"{design}.zip": pack(drawn) for design, drawn in sprites.items()}
        write_files(archives)
        for path, content in archives.items():
            print(f"{path.name}: {len(sprites[path.stem])} sprites, {len(content):,} bytes")
        return command_line.DONE

    return command_line.run(command, memory_advice="close other programs")


if __name__ == "__main__":
    sys.exit(main())
