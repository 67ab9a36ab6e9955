"""Writes a dataset of a few small images in COCO's panoptic format."""

import io
import json
import pathlib
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

CATEGORIES = [
    {"id": 3, "name": "cat, kitten", "isthing": 1, "color": [10, 20, 30]},
    {"id": 7, "name": "sky", "isthing": 0, "synonyms": ["clouds"]},
    {"id": 9, "name": "dog"},
]


class Paths(NamedTuple):
    images: pathlib.Path
    json: pathlib.Path
    pngs: pathlib.Path

    def edit(self, change) -> None:
        """Calls `change` on the json's content and writes it back."""
        content = json.loads(self.json.read_text())
        change(content)
        self.json.write_text(json.dumps(content))


def ids_to_png(ids: np.ndarray) -> bytes:
    colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
    return encode(colors, "png")


def encode(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=95)
    return buffer.getvalue()


def grey_png(numbers: np.ndarray, bits: int) -> bytes:
    """Returns a grey PNG of 1, 2, 4 or 8 bits a pixel, which Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = numbers.shape
    planes = numbers[..., None] >> np.arange(bits)[::-1] & 1
    rows = np.packbits(planes.reshape(height, -1), axis=1)
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    pixels = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())  # no filter
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write(root: pathlib.Path, count: int, *, seed: int = 0) -> Paths:
    """Writes images of several sizes; each has a cat, a sky, a crowd of dogs, a strip of void and a segment without pixels."""
    rng = np.random.default_rng(seed)
    paths = Paths(root / "images", root / "panoptic.json", root / "pngs")
    paths.images.mkdir(parents=True)
    paths.pngs.mkdir()
    content = {"images": [], "annotations": [], "categories": CATEGORIES}
    for index in range(count):
        height, width = (int(side) for side in rng.integers(24, 56, 2))
        coarse = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        ids = np.full((height, width), 70000 + index)  # sky
        ids[height // 2 :, : width // 2] = 300 + index  # cat
        ids[height // 2 :, width // 2 :] = 5  # dogs
        ids[:, -2:] = 0
        (paths.images / f"{index:03}.jpg").write_bytes(encode(pixels, "jpeg"))
        (paths.pngs / f"{index:03}.png").write_bytes(ids_to_png(ids))
        content["images"].append({"id": 100 + index, "file_name": f"{index:03}.jpg", "height": height, "width": width})
        segments = [(70000 + index, 7, 0), (5, 9, 1), (300 + index, 3, 0), (123456, 9, 0)]
        content["annotations"].append(
            {
                "image_id": 100 + index,
                "file_name": f"{index:03}.png",
                "segments_info": [
                    {"id": id, "category_id": category, "iscrowd": crowd} for id, category, crowd in segments
                ],
            }
        )
    paths.json.write_text(json.dumps(content))
    return paths
