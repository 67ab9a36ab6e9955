"""Sprites: a small drawing of each thing in several designs, cut out tightly.

draw_sprites.py makes the archives; sprites/LICENSES.md names the authors and licences of the drawings.
"""

import functools
import io
import zipfile
from importlib import resources
from types import MappingProxyType

import numpy as np
from jaxtyping import UInt8
from PIL import Image

TRAINING_DESIGNS: tuple[str, ...] = (
    "twemoji",
    "fluent",
    "openmoji",
    "emojione",
    "emojione_v1",
    "fxemoji",
    "streamline",
)
KEPT_BACK = "noto"
"""The design that no training uses, for evaluation on drawings that are as new as the unseen words."""
LONGEST_SIDE = 128
"""Pixels of the longer side of every sprite."""

FOLDER = resources.files(__package__) / "sprites"


@functools.cache
def load_sprites(design: str) -> MappingProxyType[str, UInt8[np.ndarray, "h w 4"]]:
    """Loads the sprites of a design, RGBA with straight alpha, by word, in the order of words.THINGS.

    The first three designs and the kept-back one have every thing; others lack a few. The arrays are shared between
    callers and read-only.

    Raises:
        ValueError: no design has this name.
    """
    designs = (*TRAINING_DESIGNS, KEPT_BACK)
    if design not in designs:
        raise ValueError(f"no design is called {design!r}; choose from {', '.join(designs)}")
    sprites = {}
    with zipfile.ZipFile(io.BytesIO((FOLDER / f"{design}.zip").read_bytes())) as archive:
        for name in archive.namelist():
            with Image.open(io.BytesIO(archive.read(name))) as picture:
                sprite = np.array(picture.convert("RGBA"))
            sprite.setflags(write=False)
            sprites[name.removesuffix(".webp")] = sprite
    return MappingProxyType(sprites)
