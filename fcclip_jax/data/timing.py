"""Times the input pipeline on one core: python -m fcclip_jax.data.timing coco_panoptic --root datasets

Times decoding and jitter, from the bytes of JPEG and PNG to a crop and its segment map. The baseline is the official recipe
(Pillow throughout, ids as an image of three channels) on the same images and draws; results are compared too. With
--stream N, N images pass through the whole pipeline, and the resident memory is printed five times: it should not grow.
"""

import io
import os
import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from fcclip_jax import command_line
from fcclip_jax.conventions import ceil_div
from fcclip_jax.data import decoding, images, transforms
from fcclip_jax.data.datasets import CUSTOM, DATASETS, open_dataset
from fcclip_jax.data.pipeline import train_batches
from fcclip_jax.data.records import Dataset, Record
from fcclip_jax.data.transforms import PAD_VALUE, Jitter


def _ours(record: Record, jitter: Jitter, crop: int) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
    image, segments = decoding.decode(record)
    return transforms.jitter_image(image, jitter, crop), transforms.jitter_map(segments.segment_map, jitter, crop)


def _official(record: Record, jitter: Jitter, crop: int) -> tuple[UInt8[np.ndarray, "H W 3"], Int[np.ndarray, "H W"]]:
    """Runs the steps of coco_panoptic_new_baseline_dataset_mapper.py with detectron2's transforms, up to the map of ids."""
    pixels = _official_jitter(
        images.load_image(_open(record.image)), jitter, crop, Image.Resampling.BILINEAR, PAD_VALUE
    )
    colors = _official_jitter(images.load_image(_open(record.panoptic)), jitter, crop, Image.Resampling.NEAREST, 255)
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return pixels, red + 256 * green + 65536 * blue


def _official_masks(record: Record, jitter: Jitter, crop: int) -> None:
    """Also makes the masks, one per segment, that the official mapper returns."""
    _, ids = _official(record, jitter, crop)
    np.stack([ids == id for id, _, crowd in record.segments.tolist() if not crowd])


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.ArgumentParser(
        prog="python -m fcclip_jax.data.timing", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=(*DATASETS, CUSTOM), help="the dataset to read; custom: prepared, in --root")
    parser.add_argument(
        "--root", required=True, metavar="DIR", help="the dataset's folder, or the one that contains it"
    )
    parser.add_argument(
        "--crop", type=int, default=1024, metavar="PIXELS", help="side of the crop (default: %(default)s)"
    )
    parser.add_argument(
        "--draws", type=int, default=300, metavar="N", help="crops to time, of up to 200 images (default: %(default)s)"
    )
    parser.add_argument(
        "--stream", type=int, default=0, metavar="N", help="images to pass through the pipeline (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    return command_line.run(
        lambda: _time(
            open_dataset(arguments.dataset, arguments.root), arguments.crop, arguments.draws, arguments.stream
        ),
        memory_advice="try a smaller --crop",
    )


def _time(dataset: Dataset, crop: int, draws: int, stream: int) -> int:
    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    _compare(dataset, crop, draws)
    if stream:
        _watch_memory(dataset, crop, stream)
    return command_line.DONE


def _compare(dataset: Dataset, crop: int, draws: int) -> None:
    """Times the implementations in turns, image by image, so that other load on the machine slows all of them alike."""
    records = [dataset[index] for index in range(min(len(dataset), 200))]
    rng = np.random.default_rng(0)
    ways: dict[str, Callable] = {"ours": _ours, "official, Pillow": _official, "... with its masks": _official_masks}
    seconds, off, apart = dict.fromkeys(ways, 0.0), 0, 0
    for draw in range(draws):
        record, jitter = records[draw % len(records)], transforms.draw_jitter(rng)
        results = {}
        for name, way in ways.items():
            started = time.perf_counter()
            results[name] = way(record, jitter, crop)
            seconds[name] += time.perf_counter() - started
        (image, slots), (pixels, ids) = results["ours"], results["official, Pillow"]
        off = max(off, int(np.abs(image.astype(int) - pixels).max()))
        kept = record.segments[record.segments[:, 2] == 0]
        apart += sum(int(((slots == slot) != (ids == id)).sum()) for slot, id in enumerate(kept[:, 0].tolist()))
    print(f"{draws} draws over {len(records)} images, {crop}x{crop}, one core")
    for name, spent in seconds.items():
        print(f"{name:20} {draws / spent:6.1f} images/s   x{seconds['ours'] / spent:.3f}")
    print(f"largest difference of a pixel: {off} of 255 levels; pixels in different segments: {apart}")


def _watch_memory(dataset: Dataset, crop: int, count: int) -> None:
    """Prints resident memory and speed five times while `count` images pass through the pipeline."""
    batch_size = 4
    batches = train_batches(dataset, crop=crop, batch_size=batch_size, process_index=0, process_count=1, seed=0)
    marks = [count // 5 * part for part in range(1, 6)]
    started = time.perf_counter()
    for step, _ in zip(range(ceil_div(count, batch_size)), batches, strict=False):
        seen = (step + 1) * batch_size
        if marks and seen >= marks[0]:
            rate = seen / (time.perf_counter() - started)
            print(f"{seen:6} images through the pipeline: {_resident_mib():.0f} MiB resident, {rate:.1f} images/s")
            marks.pop(0)
    batches.close()


def _resident_mib() -> float:
    """Returns the resident memory of this process, on Linux."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def _official_jitter(
    pixels: UInt8[np.ndarray, "h w 3"], jitter: Jitter, crop: int, resample: Image.Resampling, fill: int
) -> UInt8[np.ndarray, "H W 3"]:
    (height, width), (top, left) = transforms.place(pixels.shape[:2], jitter, crop)
    if jitter.flip:
        pixels = np.ascontiguousarray(np.flip(pixels, axis=1))
    pixels = np.asarray(Image.fromarray(pixels).resize((width, height), resample))
    pixels = pixels[top : top + crop, left : left + crop]
    rows, columns = (crop - side for side in pixels.shape[:2])
    return np.pad(pixels, ((0, rows), (0, columns), (0, 0)), constant_values=fill)


if __name__ == "__main__":
    sys.exit(main())
