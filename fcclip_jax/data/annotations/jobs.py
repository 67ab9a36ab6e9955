"""Runs the jobs that make a dataset's annotations.

Every file is written under a temporary name and then renamed, so a repeated run resumes after the finished files. A json
that covers all images is written last. So is the number of images, which later reveals missing maps.
"""

import concurrent.futures
import functools
import io
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fcclip_jax import files, progress
from fcclip_jax.data.annotations import pixels

FOLDERS = {"train": "training", "val": "validation"}
"""The folders of the splits, in ADE20K and in what the official scripts write."""

_FORMATS = {".png": "PNG", ".tif": "TIFF", ".jpg": "JPEG"}


class Converted(NamedTuple):
    """One job's output."""

    contents: tuple[np.ndarray | bytes, ...]
    """The content of each result: pixels, or a file's bytes."""
    record: Any = None
    """The image's entry in the summaries."""


class Job(NamedTuple):
    """The conversion of one image."""

    sources: tuple[pathlib.Path, ...]
    results: tuple[pathlib.Path, ...]
    convert: Callable[..., Converted]
    """Converts the sources, in one of several threads. Raises ValueError, naming the file, for an invalid source."""


class Plan(NamedTuple):
    """The jobs of one split of a dataset."""

    jobs: list[Job]
    official_count: int
    """The number of images in the complete split."""
    advice: str
    """The end of an error message about a missing source: the archive to unpack."""
    summaries: Mapping[pathlib.Path, Callable[[list[Any]], dict]] = {}
    """The function that makes each json from the jobs' records, in the jobs' order."""
    count_file: pathlib.Path | None = None
    """The file that receives the number of images when all are done; for splits without a json."""


def run(plans: Mapping[str, Plan]) -> int:
    """Runs the unfinished jobs of the splits, by name. Returns the number of maps, images and jsons that it wrote.

    Raises:
        FileNotFoundError: a source of any split is missing; nothing has been written then.
        ValueError: a source is damaged or invalid, two sources have the same name, or another process is preparing
            the same dataset.
        OSError: a file cannot be read or written.
    """
    for plan in plans.values():
        _check(plan)
    written = 0
    for split, plan in plans.items():
        with files.locked(plan.jobs[0].sources[0].parent, "fcclip annotate"):
            written += _run(split, plan)
    return written


def list_files(folder: pathlib.Path, pattern: str, advice: str) -> list[pathlib.Path]:
    """Returns the files that match, sorted.

    Raises:
        FileNotFoundError: none matches; the message ends with `advice`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist; {advice}")
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{folder} has no {pattern}; {advice}")
    return found


def own_folder(root: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the dataset's folder, given that folder or the one that contains it."""
    root = root.expanduser().absolute()
    return root / name if (root / name).is_dir() else root


def _run(split: str, plan: Plan) -> int:
    todo = [job for job in plan.jobs if not all(result.exists() for result in job.results)]
    summed = all(path.exists() for path in plan.summaries)
    if plan.summaries and (todo or not summed):
        # A json needs every image's record, and must describe only maps that this program wrote.
        todo, summed = plan.jobs, False
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        done = pool.map(functools.partial(_do, compare=bool(plan.summaries)), todo)
        done = list(progress.track(done, f"annotating {split}", total=len(todo)))
    finally:
        pool.shutdown(cancel_futures=True)
    if lost := [result for job in plan.jobs for result in job.results if not result.exists()]:
        raise FileNotFoundError(f"{lost[0]} was written but no longer exists ({len(lost)} files); repeat the command")
    written = sum(count for count, _ in done)
    if not summed:
        records = [record for _, record in done]
        for path, summary in plan.summaries.items():
            _write(path, json.dumps(summary(records)).encode())
            written += 1
    if plan.count_file is not None:
        count = json.dumps({"images": len(plan.jobs)}).encode()
        if not plan.count_file.exists() or not _equals(plan.count_file, count):
            _write(plan.count_file, count)
    return written


def _do(job: Job, compare: bool) -> tuple[int, Any]:
    """Converts one image. Returns the number of files written, and the record.

    compare: replaces existing results that differ.
    """
    contents, record = job.convert(*job.sources)
    written = 0
    for path, content in zip(job.results, contents, strict=True):
        if not path.exists() or (compare and not _equals(path, content)):
            _write(path, content if isinstance(content, bytes) else _encode(content, path.suffix))
            written += 1
    return written, record


def _equals(path: pathlib.Path, content: np.ndarray | bytes) -> bool:
    if isinstance(content, bytes):
        return path.read_bytes() == content
    try:
        return np.array_equal(pixels.read(path), content)
    except ValueError:
        return False


def _encode(content: np.ndarray, suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(content).save(buffer, _FORMATS[suffix])
    return buffer.getvalue()


def _write(path: pathlib.Path, content: bytes) -> None:
    with files.replacing(path, sole_writer=True) as partial:
        partial.write_bytes(content)


def _check(plan: Plan) -> None:
    """Raises FileNotFoundError for missing sources, and ValueError for two sources that would have the same result."""
    missing = [source for job in plan.jobs for source in job.sources if not source.exists()]
    if missing:
        verb = f"and {len(missing) - 1} more files do" if len(missing) > 1 else "does"
        raise FileNotFoundError(f"{missing[0]} {verb} not exist; {plan.advice}")
    makers: dict[pathlib.Path, pathlib.Path] = {}
    for job in plan.jobs:
        first = makers.setdefault(job.results[0], job.sources[0])
        if first is not job.sources[0]:
            raise ValueError(
                f"{first} and {job.sources[0]} have the same name; remove the one that is not the dataset's"
            )
