"""Photographs in, at the size that the network reads."""

import os
import pathlib

import numpy as np
from etils import epath
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

ImageLike = str | pathlib.Path | Image.Image | np.ndarray


def load_image(image: ImageLike) -> UInt8[np.ndarray, "H W 3"]:
    """RGB pixels of a file (any path that etils.epath opens), a PIL image or an array, turned upright by its EXIF tag.

    Raises:
        ValueError: the file is not an image or is damaged, or the array is not uint8 [H, W, 3].
        FileNotFoundError: there is no such file.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"expected an RGB image as uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        return image
    if isinstance(image, Image.Image):
        return _upright_rgb(image)
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(f"an image is a path, a PIL image or an array, not {type(image).__name__}")
    path = epath.Path(image).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no image at {image}")
    if path.is_dir():
        raise ValueError(f"{image} is a folder, not an image")
    try:
        with path.open("rb") as file, Image.open(file) as opened:
            return _upright_rgb(opened)
    # Pillow's decoders raise nearly anything on damaged data, and DecompressionBombError on absurd sizes.
    except (Exception, Image.DecompressionBombError) as error:
        reason = "it is not an image that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"cannot read {image}: {reason}") from error


def stored_numbers(image: Image.Image) -> Shaped[np.ndarray, "H W *C"]:
    """A file's own values, where an image is a map of numbers: indices of a palette; greys of 2 and 4 bits as they are,
    which Pillow stretches to 8.

    Raises whatever Pillow raises for a damaged file.
    """
    layout = image.tile[0][3] if image.tile else None  # before the pixels are read: how they lie in the file
    stretched = {"L;2": 85, "L;4": 17}.get(layout if isinstance(layout, str) else next(iter(layout or ()), None), 1)
    numbers = np.array(image)
    return numbers if stretched == 1 else numbers // np.uint8(stretched)


def _upright_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if 0 in image.size:
        raise ValueError(f"the image is {image.width} pixels wide and {image.height} high: there is nothing in it")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # convert("RGB") would clip deep greys to white.
        grey = np.asarray(image, np.float64)
        if not np.isfinite(grey).all():
            raise ValueError("the image holds infinities or NaN; give pixels that are numbers")
        span = max(grey.max() - grey.min(), 1e-12)
        image = Image.fromarray(np.uint8(np.round((grey - grey.min()) * (255 / span))))
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def resized_shape(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """detectron2's ResizeShortestEdge: the shorter side at `short_side`, but the longer at most `max_side`.

    At least one pixel each way: the official code fails on aspects so extreme that a side rounds to none.
    """
    scale = short_side / min(height, width)
    new_h, new_w = (short_side, scale * width) if height < width else (scale * height, short_side)
    if max(new_h, new_w) > max_side:
        scale = max_side / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    return max(int(new_h + 0.5), 1), max(int(new_w + 0.5), 1)


def resize(image: UInt8[np.ndarray, "H W 3"], shape: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Pillow's bilinear filter, anti-aliased when shrinking, as the official numbers were made."""
    if image.shape[:2] == shape:
        return image
    return np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))


def pad(image: UInt8[np.ndarray, "h w 3"], shape: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """The image at the top left of a larger one. What the padding holds is of no matter: the network never sees it."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, shape[0] - height), (0, shape[1] - width), (0, 0)))
