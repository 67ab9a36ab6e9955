"""Maps of labels in, and what is said of segments."""

import pathlib

import numpy as np
from jaxtyping import Bool, Int32, Shaped, UInt8
from PIL import Image

from fcclip_jax.data import images


def read(path: pathlib.Path) -> Shaped[np.ndarray, "H W *C"]:
    """A file's own values: indices where it has a palette, 16 bits where it has 16.

    Raises:
        ValueError: it is no image, or damaged.
        FileNotFoundError: there is no such file.
    """
    try:
        with Image.open(path) as image:
            return images.stored_numbers(image)
    except FileNotFoundError:
        raise
    # Pillow's decoders raise nearly anything on damaged data, and DecompressionBombError on absurd sizes.
    except (Exception, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path}: {_reason(error)}; unpack it again") from error


def read_labels(path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
    """The same of a map of 8 bits; raises ValueError for anything else."""
    labels = read(path)
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"{path} is {labels.dtype} {list(labels.shape)}, not a map of 8-bit labels; unpack it again")
    return labels


def check_labels(labels: Shaped[np.ndarray, "H W"], known: set[int], path: pathlib.Path) -> None:
    """Raises ValueError where the map, which is the file's, has a label that is not known."""
    if unknown := set(np.unique(labels).tolist()) - known:
        raise ValueError(f"{path} has the label {min(unknown)}, which its data set does not know; unpack it again")


def image_shape(path: pathlib.Path) -> tuple[int, int]:
    """(height, width) from the file's header. Raises ValueError if it is no image."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path}: {_reason(error)}; unpack it again") from error


def check_shapes(maps: dict[pathlib.Path, Shaped[np.ndarray, "..."]], image: pathlib.Path) -> None:
    """Raises ValueError for a map, by its file, whose size is not the image's."""
    shape = image_shape(image)
    for path, pixels in maps.items():
        if pixels.shape[:2] != shape:
            sizes = (f"{width}x{height}" for height, width in (pixels.shape[:2], shape))
            raise ValueError("{} is {} pixels, its image {}; unpack both again".format(path, *sizes))


def area_and_box(mask: Bool[np.ndarray, "H W"]) -> dict:
    """As COCO's json has them: pixels, and [x, y, width, height]; of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    box = [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
    return {"area": int(np.count_nonzero(mask)), "bbox": box}


def ids_to_colors(ids: Int32[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """As COCO's panoptic PNGs have them: R + 256 G + 65536 B."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def _reason(error: BaseException) -> str:
    return "it is not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
