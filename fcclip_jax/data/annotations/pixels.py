"""Reads label maps, and describes segments."""

import pathlib

import numpy as np
from jaxtyping import Bool, Int32, Shaped, UInt8
from PIL import Image

from fcclip_jax.data import images


def read(path: pathlib.Path) -> Shaped[np.ndarray, "H W *C"]:
    """Returns the numbers that a file stores: indices if it has a palette, 16 bits if it has 16.

    Raises:
        ValueError: the file is not an image, or damaged.
        FileNotFoundError: the file does not exist.
    """
    try:
        with Image.open(path) as image:
            return images.stored_numbers(image)
    except FileNotFoundError:
        raise
    except images.PILLOW_ERRORS as error:
        raise ValueError(f"cannot read {path}: {images.reason(error)}; unpack it again") from error


def read_labels(path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
    """Returns the labels of a map of 8 bits; raises ValueError for any other file."""
    labels = read(path)
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"{path} is {labels.dtype} {list(labels.shape)}, not a map of 8-bit labels; unpack it again")
    return labels


def check_labels(labels: Shaped[np.ndarray, "H W"], known: set[int], path: pathlib.Path) -> None:
    """Raises ValueError if the file's map has a label that is not known."""
    if unknown := set(np.unique(labels).tolist()) - known:
        raise ValueError(f"{path} has the label {min(unknown)}, which its dataset does not define; unpack it again")


def image_shape(path: pathlib.Path) -> tuple[int, int]:
    """Returns (height, width) from the file's header; raises ValueError if it is not an image."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path}: {images.reason(error)}; unpack it again") from error


def check_shapes(maps: dict[pathlib.Path, Shaped[np.ndarray, "..."]], image: pathlib.Path) -> None:
    """Raises ValueError, naming the file, for a map whose size is not the image's."""
    shape = image_shape(image)
    for path, pixels in maps.items():
        if pixels.shape[:2] != shape:
            sizes = (f"{width}x{height}" for height, width in (pixels.shape[:2], shape))
            raise ValueError("{} is {} pixels, but its image {}; unpack both again".format(path, *sizes))


def area_and_box(mask: Bool[np.ndarray, "H W"]) -> dict:
    """Returns a segment's area in pixels and its box [x, y, width, height], in COCO's form; the mask must not be empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    box = [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
    return {"area": int(np.count_nonzero(mask)), "bbox": box}


def ids_to_colors(ids: Int32[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns ids as the colours of COCO's panoptic PNGs: R + 256 G + 65536 B."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
