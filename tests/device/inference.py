"""Times inference: images a second, stages, the start of a process, and the kernels of one image."""

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import UInt8

from fcclip_jax.inference import timing
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.inference.timing import GIB
from fcclip_jax.models.precision import choose_precision
from tests.device import models
from tests.device.clock import in_time
from tests.device.running import ROOT, Row
from tests.device.traces import kernel_times
from tests.device.training import out_of_memory

SIZE = (800, 1067)
"""An image whose size the network reads unchanged."""
SIZES = {(480, 640): {}, SIZE: {}, (1024, 2048): {"short_side": 1024, "max_side": 2048}}
"""Sizes of images, and the options of `Segmenter` for them: COCO's, the same without resizing, Cityscapes'."""
SMALL_SIZE = (96, 128)
SMALL_SIZES = {SMALL_SIZE: {"short_side": 96, "max_side": 160}}


def photos(size: tuple[int, int], count: int) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Returns smooth random images."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, *(side // 16 + 1 for side in size), 3), np.uint8)
    return [image.repeat(16, 0).repeat(16, 1)[: size[0], : size[1]] for image in coarse]


def throughput(small: bool) -> Iterator[Row]:
    """Yields images a second from pixels to all three results on the host, once everything is compiled."""
    model = models.random(small)
    for precision, batch, size in in_time(cells(small)):
        sides = SMALL_SIZES[size] if small else SIZES[size]
        segmenter = models.segmenter(model, small, batch_size=batch, batched=True, precision=precision, **sides)
        yield rate(segmenter, size, batch) | {"precision": precision}


def cells(small: bool) -> list[tuple[str, int, tuple[int, int]]]:
    """Returns (precision, batch, size) of the programs to time, the most telling first. Compiling each takes a while."""
    precisions = models.precisions()
    if small:
        return [(precision, batch, SMALL_SIZE) for precision in precisions for batch in (2, 1)]
    others = [size for size in SIZES if size != SIZE]
    return [
        *((precision, batch, SIZE) for precision in precisions for batch in (8, 1)),
        *((precision, batch, size) for precision in precisions[:-1] for size in others for batch in (8, 1)),
        *((precision, 4, SIZE) for precision in precisions[:-1]),
    ]


def rate(segmenter: Segmenter, size: tuple[int, int], batch: int) -> Row:
    facts = {"size": "x".join(map(str, size)), "batch": batch}
    many = photos(size, max(24, 6 * batch) if size != SMALL_SIZE else 2 * batch)
    try:
        begin = time.perf_counter()
        segments = [len(result.panoptic.segments) for _, result in segmenter.stream(many[:batch])]
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        found = sum(1 for _ in segmenter.stream(many))
        seconds = time.perf_counter() - begin
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return facts | {"images/s": None, "ms an image": None, "first s": None, "segments": None}
    figures = {"images/s": found / seconds, "ms an image": 1e3 * seconds / found, "first s": first}
    return facts | figures | {"segments": segments[0]}


def stage_times(small: bool) -> Iterator[Row]:
    """Yields milliseconds of each stage as a program of its own, and of the whole."""
    embed_dim = models.description(small).clip.image.embed_dim
    model = models.random(small)
    sizes = (SMALL_SIZE,) if small else (SIZE, (1024, 2048))
    for size, name in in_time(itertools.product(sizes, models.precisions())):
        net = timing.network(model, choose_precision(name, jax.devices()[0]))
        case = timing.build(net, embed_dim, size)
        seconds = timing.measure(case.programs, 3 if small else 10)
        row = {"size": "x".join(map(str, size)), "precision": name}
        row |= {f"{stage}, ms": 1e3 * value for stage, value in seconds.items()}
        yield row | {"planned GiB": case.planned_memory / GIB, "compile s": sum(case.compile_seconds.values())}


def start(small: bool) -> Iterator[Row]:
    """Yields the seconds from the start of a process to its first result, without cached programs and with them."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"FCCLIP_JAX_CACHE": folder, "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla"}
        for name in ("cold", "warm"):
            command = [sys.executable, "-m", "tests.device.first_result", *["--small"] * small]
            begin = time.perf_counter()
            done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
            seconds = time.perf_counter() - begin
            if done.returncode:
                raise RuntimeError(f"the {name} process failed:\n{done.stderr[-2000:]}")
            marks = dict(line.split(" = ") for line in done.stdout.splitlines() if " = " in line)
            yield {"start": name, "s to the first result": seconds} | {name: float(at) for name, at in marks.items()}


def trace(small: bool) -> Iterator[Row]:
    """Yields the kernels that take most of the time of one image, from JAX's profiler."""
    size, sides = next(iter(SMALL_SIZES.items())) if small else (SIZE, {})
    segmenter = models.segmenter(models.random(small), small, **sides)
    (image,) = photos(size, 1)
    for _ in range(2):
        segmenter(image)
    repeats = 3
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                segmenter(image)
        times = kernel_times(folder)
    total = sum(entry.seconds for entry in times)
    wall = statistics.median(seconds_of(segmenter, image) for _ in range(repeats))
    yield {"kernels": len(times), "ms an image": 1e3 * total / repeats, "ms an image with the host": 1e3 * wall}
    for entry in times[:20]:
        yield {
            "ms": 1e3 * entry.seconds / repeats,
            "share": entry.seconds / total,
            "calls": entry.calls / repeats,
            "kernel": entry.name[:70],
            "from": entry.source[-60:],
        }


def seconds_of(segmenter: Segmenter, image: UInt8[np.ndarray, "H W 3"]) -> float:
    begin = time.perf_counter()
    segmenter(image)
    return time.perf_counter() - begin
