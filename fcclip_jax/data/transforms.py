"""Large-scale jitter, the augmentation of training: a flip, one scale, one crop, padding.

The arithmetic is detectron2's (ResizeScale, FixedSizeCrop). The pixels are Pillow's, which the official results were
computed with: shrinking uses Pillow itself, for its anti-aliasing; enlarging uses OpenCV, which differs by at most one
level and takes a fifth of the time.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from fcclip_jax.conventions import NO_SEGMENT
from fcclip_jax.data import images

SCALES = (0.1, 2.0)
"""The official range of scales."""
PAD_VALUE = 128


class Jitter(NamedTuple):
    """One image's random draws."""

    flip: bool
    scale: float
    """Relative to the largest size that fits the crop."""
    offset: float
    """The crop's place in the part that exceeds it, in [0, 1), for both axes alike."""


def draw_jitter(rng: np.random.Generator, scales: tuple[float, float] = SCALES) -> Jitter:
    """Draws in the official order, the scale from a range; the offset is drawn even if nothing will be cropped."""
    flip = rng.uniform() < 0.5
    return Jitter(flip=bool(flip), scale=rng.uniform(*scales), offset=rng.uniform())


class Placement(NamedTuple):
    """The size that an image is resized to, and the crop's top left corner in it; (y, x) each."""

    shape: tuple[int, int]
    corner: tuple[int, int]


def place(shape: tuple[int, int], jitter: Jitter, crop: int) -> Placement:
    """Returns size and corner, rounded half to even as NumPy does; each side is at least 1 pixel."""
    height, width = shape
    scale = min(crop * jitter.scale / height, crop * jitter.scale / width)
    resized = max(round(height * scale), 1), max(round(width * scale), 1)
    corner = tuple(round(max(side - crop, 0) * jitter.offset) for side in resized)
    return Placement(resized, corner)


def jitter_image(image: UInt8[np.ndarray, "h w 3"], jitter: Jitter, crop: int) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the crop x crop pixels that the draws choose, padded with grey at the bottom and right."""
    (height, width), (top, left) = place(image.shape[:2], jitter, crop)
    if jitter.flip:
        image = cv2.flip(image, 1)
    if height >= image.shape[0] and width >= image.shape[1]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    else:
        image = images.resize(image, (height, width))
    seen = image[top : top + crop, left : left + crop]
    padded = np.full((crop, crop, 3), PAD_VALUE, np.uint8)
    padded[: seen.shape[0], : seen.shape[1]] = seen
    return padded


def jitter_map(segment_map: UInt8[np.ndarray, "h w"], jitter: Jitter, crop: int) -> UInt8[np.ndarray, "H W"]:
    """Returns the same crop of a segment map, by nearest neighbours; the padding is NO_SEGMENT."""
    (height, width), (top, left) = place(segment_map.shape, jitter, crop)
    rows = nearest(segment_map.shape[0], height)[top : top + crop]
    columns = nearest(segment_map.shape[1], width)[left : left + crop]
    if jitter.flip:
        columns = segment_map.shape[1] - 1 - columns
    if height >= segment_map.shape[0]:  # columns first: fewer rows are gathered from
        band = segment_map[rows[0] : rows[-1] + 1]
        seen = band.take(columns, axis=1).take(rows - rows[0], axis=0)
    else:
        seen = segment_map.take(rows, axis=0).take(columns, axis=1)
    padded = np.full((crop, crop), NO_SEGMENT, np.uint8)
    padded[: len(rows), : len(columns)] = seen
    return padded


def nearest(source: int, target: int) -> Int[np.ndarray, " target"]:
    """Returns the source pixel of each target pixel, equal to Pillow's NEAREST.

    Pillow accumulates the step pixel by pixel in float64 (ImagingScaleAffine), so up to 0.5 % of its choices differ from
    floor((i + 0.5) * step). `np.cumsum` accumulates likewise.
    """
    steps = np.full(target, source / target)
    steps[0] /= 2
    return np.cumsum(steps).astype(np.int64)
