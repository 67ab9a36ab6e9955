"""What the preparations share: a list of jobs in, files out.

A file has another name until it is whole, so a run that was stopped goes on when it is repeated. A json, which speaks of
all images, is written last; so is the record of how many images there are, without which nobody could tell that maps lack.
"""

import concurrent.futures
import contextlib
import functools
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from fcclip_jax.data.annotations import pixels

FORMATS = {".png": "PNG", ".tif": "TIFF", ".jpg": "JPEG"}


class Converted(NamedTuple):
    """What comes of one job."""

    contents: tuple[np.ndarray | bytes, ...]
    """Of each result: pixels, or a file as it is."""
    record: Any = None
    """What the summaries are made of."""


class Job(NamedTuple):
    """One image."""

    sources: tuple[pathlib.Path, ...]
    results: tuple[pathlib.Path, ...]
    convert: Callable[..., Converted]
    """Called with the sources, in a thread of its own. Raises ValueError for what is wrong with them, naming the file."""


class Plan(NamedTuple):
    """One split of a data set."""

    jobs: list[Job]
    official_count: int
    """Images in the whole split."""
    advice: str
    """Where what is missing comes from."""
    summaries: Mapping[pathlib.Path, Callable[[list[Any]], dict]] = {}
    """What makes each json of the jobs' records, which are in the jobs' order."""
    count_file: pathlib.Path | None = None
    """Gets the number of images when all are done; for splits that no json speaks of."""


def run(plans: Mapping[str, Plan]) -> int:
    """Does what is left to do of the splits, by name. Returns how many maps, images and jsons of them it wrote.

    Raises:
        FileNotFoundError: a source is missing, of whichever split; nothing was written then.
        ValueError: a source is damaged, or not as its data set has it, or two are of one name; or another process does this.
        OSError: a file cannot be read or written.
    """
    for plan in plans.values():
        _check(plan)
    written = 0
    for split, plan in plans.items():
        with _alone(plan.jobs[0].sources[0].parent):
            written += _run(split, plan)
    return written


def list_files(folder: pathlib.Path, pattern: str, advice: str) -> list[pathlib.Path]:
    """Sorted; raises FileNotFoundError where there are none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; {advice}")
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"there is no {pattern} in {folder}; {advice}")
    return found


def own_folder(root: pathlib.Path, name: str) -> pathlib.Path:
    """The data set's folder, where the root is that folder or the one that it lies in."""
    root = root.expanduser().absolute()
    return root / name if (root / name).is_dir() else root


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Raises ValueError if another process makes something of the folder; the system forgets those that were killed."""
    try:
        import fcntl
    except ImportError:  # Windows cannot lock a folder
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"another fcclip annotate reads {folder}; wait until it is done") from None
    except OSError:  # some network drives cannot either
        pass
    try:
        yield
    finally:
        os.close(handle)


def _run(split: str, plan: Plan) -> int:
    todo = [job for job in plan.jobs if not all(result.exists() for result in job.results)]
    summed = all(path.exists() for path in plan.summaries)
    if plan.summaries and (todo or not summed):
        # A json needs every image's record, and must not describe maps that another program left.
        todo, summed = plan.jobs, False
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        done = pool.map(functools.partial(_do, compare=bool(plan.summaries)), todo)
        done = list(tqdm(done, f"annotating {split}", total=len(todo), unit="image", disable=None))
    finally:
        pool.shutdown(cancel_futures=True)
    if lost := [result for job in plan.jobs for result in job.results if not result.exists()]:
        raise FileNotFoundError(f"{lost[0]} was written and is gone; repeat the command ({len(lost)} files in all)")
    written = sum(count for count, _ in done)
    if not summed:
        records = [record for _, record in done]
        for path, summary in plan.summaries.items():
            _write(path, json.dumps(summary(records)).encode())
            written += 1
    if plan.count_file is not None:
        count = json.dumps({"images": len(plan.jobs)}).encode()
        if not plan.count_file.exists() or not _holds(plan.count_file, count):
            _write(plan.count_file, count)
    return written


def _do(job: Job, compare: bool) -> tuple[int, Any]:
    """compare: whether results that are there are looked at, and replaced if they differ."""
    contents, record = job.convert(*job.sources)
    written = 0
    for path, content in zip(job.results, contents, strict=True):
        if not path.exists() or (compare and not _holds(path, content)):
            _write(path, content if isinstance(content, bytes) else _encode(content, path.suffix))
            written += 1
    return written, record


def _holds(path: pathlib.Path, content: np.ndarray | bytes) -> bool:
    if isinstance(content, bytes):
        return path.read_bytes() == content
    try:
        return np.array_equal(pixels.read(path), content)
    except ValueError:
        return False


def _encode(content: np.ndarray, suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(content).save(buffer, FORMATS[suffix])
    return buffer.getvalue()


def _write(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check(plan: Plan) -> None:
    missing = [source for job in plan.jobs for source in job.sources if not source.exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"there is no {missing[0]}{more}; {plan.advice}")
    makers: dict[pathlib.Path, pathlib.Path] = {}
    for job in plan.jobs:
        first = makers.setdefault(job.results[0], job.sources[0])
        if first is not job.sources[0]:
            raise ValueError(f"{first} and {job.sources[0]} have one name; remove what is not the data set's")
