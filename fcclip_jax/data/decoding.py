"""From a record's bytes to pixels and a segment map."""

import io
import threading
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Int, UInt8, UInt16
from PIL import Image

from fcclip_jax.conventions import NO_SEGMENT
from fcclip_jax.data import images
from fcclip_jax.data.folder import Record

_ORIENTATION = 0x0112  # the EXIF tag


class SegmentMap(NamedTuple):
    """An image's segments without its crowds, as an id map."""

    segment_map: UInt8[np.ndarray, "H W"]
    """The row of each pixel's segment in `categories`; 255 where there is none."""
    categories: Int[np.ndarray, " G"]
    """Category ids."""
    cut: int
    """SegmentMap that there was no room for: the smallest ones."""


def decode_image(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """RGB pixels, upright, as Pillow decodes them.

    Raises:
        ValueError: no image, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            plain = image.format == "JPEG" and image.mode == "RGB"
            if plain and image.getexif().get(_ORIENTATION, 1) == 1:
                try:
                    return simplejpeg.decode_jpeg(data)
                except ValueError:
                    pass  # libjpeg warned; whether that matters is Pillow's judgement
            return images.load_image(image)
    # Pillow's decoders raise nearly anything on damaged data, and DecompressionBombError on absurd sizes.
    except (Exception, Image.DecompressionBombError) as error:
        reason = "not an image that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"the image cannot be read: {reason}") from error


def decode_ids(data: bytes) -> Int[np.ndarray, "H W"]:
    """Segment ids of a panoptic PNG, R + 256 G + 65536 B.

    Raises:
        ValueError: no PNG, or a damaged one.
    """
    colors = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if colors is None:
        raise ValueError("the panoptic PNG is damaged, or not a PNG")
    # Four bytes a pixel, R lowest, are one little-endian number.
    return cv2.cvtColor(colors, cv2.COLOR_BGR2RGBA).view("<i4")[..., 0] & 0xFFFFFF


def segments_of(
    ids: Int[np.ndarray, "H W"], segments: Int[np.ndarray, "N 3"], max_segments: int = NO_SEGMENT
) -> SegmentMap:
    """Numbers the segments that are no crowds; pixels of crowds, void and cut segments are 255.

    segments: (id, category id, whether it is a crowd), as in Record.
    max_segments: at most 255; the largest are kept, in their order.

    Raises:
        ValueError: a pixel's id is neither 0 nor among the segments.
    """
    crowd = segments[:, 2] != 0
    kept = np.flatnonzero(~crowd)
    table = _table()
    # 0 marks ids that nobody knows, so that the table is cleared by as few writes as it was filled with.
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
        raise ValueError(f"the panoptic PNG has the segment id {unknown}, which its segments_info lacks")
    return SegmentMap((slots - 1).astype(np.uint8), segments[kept, 1], cut)


def decode(record: Record, max_segments: int = NO_SEGMENT) -> tuple[UInt8[np.ndarray, "H W 3"], SegmentMap]:
    """A record's pixels and segments.

    Raises:
        ValueError: the image or the map is damaged, or they do not fit together; the sentence names the image.
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
    """A table over all 24-bit ids, zero everywhere; one a thread, kept, since making one costs more than decoding."""
    if not hasattr(_local, "table"):
        _local.table = np.zeros(1 << 24, np.uint16)
    return _local.table
