"""Times training steps of FC-CLIP with ConvNeXt-L, and of Mask2Former in PyTorch with a trunk of the same sizes."""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

from fcclip_jax.models.descriptions import CLIP_MODELS, SMALL, ModelDescription
from fcclip_jax.training import timing
from fcclip_jax.training.timing import GIB, Case, Side
from tests.device.clock import in_time
from tests.device.running import Row

STEPS, IMAGES_A_STEP = 368_750, 16
"""The official recipe."""
SECONDS_A_DAY = 86_400
REPEATS = 5


def ours(small: bool) -> Iterator[Row]:
    """Yields the recipe's step, at its batch or the largest smaller one that fits."""
    yield from first_that_fits(timing.ours, descending(recipe(small, "jax")))


def matcher_on_host(small: bool) -> Iterator[Row]:
    """Yields the step with the matching on the host: on the device it is a long loop of small operations."""
    yield from first_that_fits(timing.ours, descending(recipe(small, "jax")._replace(matcher="scipy")))


def theirs(small: bool) -> Iterator[Row]:
    yield from first_that_fits(timing.theirs, descending(recipe(small, "torch")))


def variants(small: bool) -> Iterator[Row]:
    """Yields steps that recompute activations, for which larger batches fit too."""
    case = recipe(small, "jax")._replace(matcher="scipy", remat=True)
    for multiple in in_time((1, 3, 2)):
        row = measure(timing.ours, case._replace(batch=multiple * case.batch))
        yield row
        if multiple == 3 and fits(row):
            return


def recipe(small: bool, library: str) -> Case:
    device = "gpu" if on_gpu(library) else "cpu"
    if small:
        description = dataclasses.replace(
            SMALL, head=dataclasses.replace(SMALL.head, encoder_layers=1, decoder_layers=1)
        )
        return Case(description, crop=128, batch=2, segments=12, points=1024, device=device, dtype="bfloat16")
    description = ModelDescription(clip=CLIP_MODELS[timing.MODEL])
    return Case(description, crop=1024, batch=16, segments=12, device=device, dtype="bfloat16")


def on_gpu(library: str) -> bool:
    """Returns whether a library has a GPU. Only that library is imported: both would share the memory."""
    if library == "torch":
        import torch

        return torch.cuda.is_available()
    import jax

    return jax.default_backend() == "gpu"


def descending(case: Case) -> list[Case]:
    return [case._replace(batch=batch) for batch in (16, 8, 4, 2) if batch <= case.batch]


def first_that_fits(build: Callable[[Case], Side], cases: Sequence[Case]) -> Iterator[Row]:
    for case in in_time(cases):
        row = measure(build, case)
        yield row
        if fits(row):
            return


def fits(row: Row) -> bool:
    return row["result"] != "out of memory"


def measure(build: Callable[[Case], Side], case: Case) -> Row:
    """Returns a case's row: median seconds of a step after the first, which compiles, and the peak memory so far."""
    facts = {
        "side": {timing.ours: "jax", timing.theirs: "torch"}[build],
        "batch": case.batch,
        "crop": case.crop,
        "dtype": case.dtype,
        "matcher": case.matcher if build is timing.ours else "scipy",
        "remat": case.remat,
    }
    gc.collect()  # the arrays of the case before
    seconds, losses = [], []
    try:
        side = build(case)
        for _ in range(1 + REPEATS):
            begin = time.perf_counter()
            losses.append(side.step())
            seconds.append(time.perf_counter() - begin)
        memory = side.peak_memory() / GIB
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        unknown = dict.fromkeys(("s a step", "images/s", "peak GiB", "first s", "days", "losses"))
        return facts | unknown | {"result": "out of memory"}
    median = statistics.median(seconds[1:])
    days = median / case.batch * IMAGES_A_STEP * STEPS / SECONDS_A_DAY
    figures = {
        "s a step": median,
        "images/s": case.batch / median,
        "peak GiB": memory,
        "first s": seconds[0],
        "days": days,
    }
    return facts | figures | {"losses": [round(loss, 2) for loss in (losses[0], losses[-1])], "result": "done"}


def out_of_memory(error: RuntimeError) -> bool:
    """Returns whether XLA or PyTorch could not allocate an array."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
