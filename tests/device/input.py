"""Times the input pipeline of training on all cores, and compares it with the training step of this report."""

import itertools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from fcclip_jax.data.folder import FolderDataset
from fcclip_jax.data.pipeline import train_batches
from fcclip_jax.data.records import Dataset
from tests.data import tiny
from tests.device.clock import in_time
from tests.device.running import FOLDER, Row, read_rows
from tests.device.training import recipe

SIZE = (480, 640)
"""COCO's usual size."""
SEGMENTS = 12


def pipeline(small: bool) -> Iterator[Row]:
    """Yields crops a second with several numbers of workers, and the share of a step's time that training waits for them.

    The share needs the step's time from the part "train".
    """
    case = recipe(small, "jax")
    needed = images_a_second(pathlib.Path(os.environ[FOLDER]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_images(pathlib.Path(folder), 4 if small else 64, SIZE)
        for workers in in_time(sorted({0, cores // 4, cores // 2, cores})):
            made = rate(dataset, case.crop, case.batch, workers, seconds=1 if small else 4)
            row = {"crop": case.crop, "batch": case.batch, "cores": cores, "workers": workers, "images/s": made}
            # A step and the preparation of the next batch overlap.
            yield row | {"step's images/s": needed, "share waiting": needed and max(0.0, 1 - made / needed)}


def images_a_second(folder: pathlib.Path) -> float | None:
    """Returns what the fastest training step of the report consumes, or None if none was timed."""
    rows, _ = read_rows(folder / "train.rows")
    return max((row["images/s"] for row in rows if row["images/s"]), default=None)


def rate(dataset: Dataset, crop: int, batch: int, workers: int, seconds: float) -> float:
    """Returns images a second over at least `seconds`, once every worker has made its first batch."""
    batches = train_batches(
        dataset, crop=crop, batch_size=batch, process_index=0, process_count=1, seed=0, workers=workers
    )
    # Workers take turns, so a whole round has the same amount of work however it begins.
    a_round = max(workers, 1)
    try:
        for _ in itertools.islice(batches, a_round):
            pass
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            count += sum(len(example.batch.images) for example in itertools.islice(batches, a_round))
        return count / (time.perf_counter() - begin)
    finally:
        batches.close()


def write_images(root: pathlib.Path, count: int, size: tuple[int, int]) -> Dataset:
    """Writes a dataset in COCO's panoptic format, of random images with the detail of photographs."""
    paths = tiny.Paths(root / "images", root / "panoptic.json", root / "pngs")
    paths.images.mkdir(parents=True)
    paths.pngs.mkdir()
    rng = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": tiny.CATEGORIES}
    for index in range(count):
        segment_map = nearest_points(rng, size)
        colors = rng.integers(0, 256, (SEGMENTS, 3))[segment_map]
        pixels = np.clip(colors + rng.normal(scale=12, size=(*size, 1)), 0, 255).astype(np.uint8)
        (paths.images / f"{index}.jpg").write_bytes(tiny.encode(pixels, "jpeg"))
        (paths.pngs / f"{index}.png").write_bytes(tiny.ids_to_png(segment_map.astype(np.int64) * 5000 + 1))
        content["images"].append({"id": index, "file_name": f"{index}.jpg", "height": size[0], "width": size[1]})
        segments = [
            {"id": int(segment) * 5000 + 1, "category_id": tiny.CATEGORIES[segment % 3]["id"], "iscrowd": 0}
            for segment in np.unique(segment_map)
        ]
        annotation = {"image_id": index, "file_name": f"{index}.png", "segments_info": segments}
        content["annotations"].append(annotation)
    paths.json.write_text(json.dumps(content))
    return FolderDataset(*paths)


def nearest_points(rng: np.random.Generator, size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """Returns a map whose pixels belong to the nearest of SEGMENTS random points."""
    points = rng.uniform(0, size, (SEGMENTS, 2))
    rows, columns = np.mgrid[: size[0], : size[1]]
    distances = (rows - points[:, 0, None, None]) ** 2 + (columns - points[:, 1, None, None]) ** 2
    return distances.argmin(0).astype(np.uint8)
