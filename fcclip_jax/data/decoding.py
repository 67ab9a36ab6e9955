"""Decodes a record's bytes into pixels and a segment map."""

import io
import threading
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Int, UInt8, UInt16
from PIL import Image

from fcclip_jax.conventions import NO_SEGMENT
from fcclip_jax.data import image_sources, images
from fcclip_jax.data.records import Record


class SegmentMap(NamedTuple):
    """An image's segments except its crowds, as a map of rows."""

    segment_map: UInt8[np.ndarray, "H W"]
    """The row of each pixel's segment in `categories`, or NO_SEGMENT."""
    categories: Int[np.ndarray, " G"]
    """The segments' category ids."""
    cut: int
    """The number of segments left out because an image had too many; these are the smallest."""


def decode_image(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Returns RGB pixels, upright, as Pillow decodes them.

    Raises:
        ValueError: the data are not an image, or damaged.
    """

    def pixels(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:  # of which the header has been read
        plain = image.format == "JPEG" and image.mode == "RGB"
        if plain and images.orientation(image) == 1:
            try:
                return simplejpeg.decode_jpeg(data)
            except ValueError:
                pass  # libjpeg warned; Pillow decides below whether the file is damaged
        return images.upright_rgb(image)

    try:
        return image_sources.read(io.BytesIO(data), pixels)
    except images.PILLOW_ERRORS as error:
        raise ValueError(f"the image cannot be read: {images.reason(error)}") from error


def decode_ids(data: bytes) -> Int[np.ndarray, "H W"]:
    """Returns the segment ids of a panoptic PNG, R + 256 G + 65536 B.

    Raises:
        ValueError: the data are not a PNG, or damaged.
    """
    colors = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if colors is None:
        raise ValueError("the panoptic PNG is damaged, or not a PNG")
    # Four bytes a pixel, R lowest, are one little-endian number.
    return cv2.cvtColor(colors, cv2.COLOR_BGR2RGBA).view("<i4")[..., 0] & 0xFFFFFF


def segments_of(
    ids: Int[np.ndarray, "H W"], segments: Int[np.ndarray, "N 3"], max_segments: int = NO_SEGMENT
) -> SegmentMap:
    """Numbers the segments except crowds; pixels of crowds, void and omitted segments become NO_SEGMENT.

    segments: (id, category id, 1 if it is a crowd), as in Record.
    max_segments: at most 255; the largest segments are kept, in their order.

    Raises:
        ValueError: a pixel's id is neither 0 nor one of the segments'.
    """
    crowd = segments[:, 2] != 0
    kept = np.flatnonzero(~crowd)
    table = _table()
    # 0 marks unlisted ids, so clearing the table takes as few writes as filling it.
    table[0] = table[segments[:, 0]] = NO_SEGMENT + 1
    cut = max(len(kept) - max_segments, 0)
    if cut:
        areas = np.array([np.count_nonzero(ids == id) for id in segments[kept, 0]])
        kept = np.sort(kept[np.argsort(-areas, kind="stable")[:max_segments]])
    table[segments[kept, 0]] = np.arange(1, len(kept) + 1)
    slots = table.take(ids)
    table[0] = table[segments[:, 0]] = 0
    if not slots.all():
        unknown = ids[slots == 0][0]
        raise ValueError(f"the panoptic PNG has the segment id {unknown}, which is not in its segments_info")
    return SegmentMap((slots - 1).astype(np.uint8), segments[kept, 1], cut)


def decode(record: Record, max_segments: int = NO_SEGMENT) -> tuple[UInt8[np.ndarray, "H W 3"], SegmentMap]:
    """Returns a record's pixels and segments.

    Raises:
        ValueError: the image or the map is damaged, or they do not match; the message names the image.
    """
    try:
        image, ids = decode_image(record.image), decode_ids(record.panoptic)
        if image.shape[:2] != ids.shape:
            sizes = (f"{width}x{height}" for height, width in (image.shape[:2], ids.shape))
            raise ValueError("the image is {} pixels, its panoptic PNG {}".format(*sizes))
        return image, segments_of(ids, record.segments, max_segments)
    except ValueError as error:
        raise ValueError(f"{record.file_name}: {error}") from error


_local = threading.local()


def _table() -> UInt16[np.ndarray, " {1<<24}"]:
    """Returns this thread's table over all 24-bit ids, all zeros. It is reused: allocating it costs more than decoding."""
    if not hasattr(_local, "table"):
        _local.table = np.zeros(1 << 24, np.uint16)
    return _local.table
