"""Images with captions of your own: a file of json lines beside the images."""

import json
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from fcclip_jax.data import images
from fcclip_jax.data.captions import Caption, CaptionExample

SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)
"""The ranges of a crop's share of the image's area, and of its width over its height."""


class CaptionFolder:
    """A CaptionSource: a line {"image": PATH, "captions": [TEXT, ...], "names": [NAME, ...]} for each image.

    Paths are relative to the file. "names", which is optional, lists what is known to be in the image. A caption that is one
    of them is true of every image that has this name; another caption is true of the images that have an equal one.
    """

    def __init__(self, path: epath.PathLike):
        """Reads the lines, not the images.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is not UTF-8, or a line is not of that form.
        """
        path = epath.Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"the captions {path} do not exist; give a file of json lines")
        self.name, self._folder = str(path), path.parent
        self._rows = [
            _parse(line, f"{path}, line {number}")
            for number, line in enumerate(_read(path).splitlines(), start=1)
            if line.strip()
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, index: int, rng: np.random.Generator, side: int) -> CaptionExample:
        file, texts, names = self._rows[index]
        image = _random_crop(images.load_image(str(self._folder / file)), rng, side)
        known = {name.lower() for name in names}
        captions = [Caption(text, (text,) if text.lower() in known else ()) for text in texts]
        rng.shuffle(captions)
        return CaptionExample(image, names, tuple(captions))


def _random_crop(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, side: int) -> UInt8[np.ndarray, "S S 3"]:
    """Cuts a rectangle of random size, shape and place, and resizes it to a square."""
    height, width = image.shape[:2]
    area, ratio = height * width * rng.uniform(*SCALE), np.exp(rng.uniform(*np.log(RATIO)))
    crop_width = int(np.clip(round(np.sqrt(area * ratio)), 1, width))
    crop_height = int(np.clip(round(np.sqrt(area / ratio)), 1, height))
    top, left = rng.integers(height - crop_height + 1), rng.integers(width - crop_width + 1)
    return images.resize(image[top : top + crop_height, left : left + crop_width], (side, side))


def _read(path: epath.Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it in this encoding") from None


def _parse(line: str, where: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: it is not JSON ({error})") from None
    match row:
        case {"image": str(file), "captions": [_, *_] as captions} if all(
            isinstance(text, str) and text.strip() for text in captions
        ):
            names = row.get("names", [])
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                return file, tuple(captions), tuple(names)
    raise ValueError(
        f'{where}: expected {{"image": PATH, "captions": [TEXT, ...]}}, optionally with "names": [NAME, ...], got {line:.80}'
    )
