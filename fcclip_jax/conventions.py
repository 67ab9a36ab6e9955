"""Names and numbers that the whole project shares. This module imports nothing, so anything may import it."""

TASKS = ("panoptic", "semantic", "instances")
"""The tasks, in the order in which results are listed."""

STRIDE = 32
"""Images are padded to a multiple of this (MODEL.MASK_FORMER.SIZE_DIVISIBILITY): the stride of the coarsest features."""
MASK_STRIDE = 4
"""Pixels of the padded image to a mask logit, along either axis."""

SHORT_SIDE, MAX_SIDE = 800, 1333
"""The official test size in pixels (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST)."""
OVERLAP_THRESHOLD = 0.8
"""The minimum share of its own mask that a panoptic segment keeps (MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD)."""
INSTANCE_THRESHOLD = 0.5
"""The minimum score of an instance that is drawn or exported, unless the user or the checkpoint chooses another."""

PRECISIONS = ("float32", "tf32", "bfloat16")
"""The precisions that a network can run in; `models.precision` defines them."""

START_ID, END_ID = 49406, 49407
"""CLIP's tokens of a text's start and end, the two with the largest ids. Padding is 0."""

RANDOM_WEIGHTS = "random"
"""The name of a model with random weights, which stands in for a checkpoint to try things out."""
WORLD_WEIGHTS = "world"
"""The name of the small trained model inside this package, unless the working folder has a path of that name."""

IGNORE = 65535
"""The value of ignored pixels in maps of class indices."""
IGNORE_8BIT = 255
"""The value of ignored pixels in 8-bit label maps, as most datasets use it."""
NO_SEGMENT = 255
"""The value of pixels without a segment in segment maps."""

CITYSCAPES_LABELS = 34
"""Cityscapes' label ids are 0 to 33; its instance ids are label id x 1000 + number."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
    | {".heic", ".heif"}
)
"""Files with these suffixes, in either case, are photographs."""
MAP_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".gif"})
"""Files with these suffixes, in either case, may be label maps: their kinds keep numbers as they are."""


def ceil_div(size, divisor):
    """Returns size / divisor, rounded up, of integers or integer arrays that are not negative."""
    return (size + divisor - 1) // divisor


def round_up(size, multiple):
    """Returns the smallest multiple that is at least `size`, of integers or integer arrays that are not negative."""
    return ceil_div(size, multiple) * multiple


def check_tasks(tasks) -> tuple[str, ...]:
    """Returns one task or several as a tuple in the order of TASKS.

    Raises:
        ValueError: no task is given, or a task does not exist.
    """
    chosen = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if not chosen or not set(chosen) <= set(TASKS):
        raise ValueError(f"tasks are {list(chosen)}: name one or more of {', '.join(TASKS)}")
    return tuple(task for task in TASKS if task in chosen)
