"""The parts of the report, the most valuable first, and their time limits on an H100.

The limits add up to about two runs of 360 s. A new program of ConvNeXt-L takes 20 to 60 s to compile and to autotune, so a
part costs about as many of these as it has such programs: train 1, throughput up to 16, stages 5 for each precision, errors 3,
start and trace 1.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Part(NamedTuple):
    """A function that checks or times something in a process of its own."""

    name: str
    function: str
    """module:name of a function (small: bool) → iterator of rows, each of which is a dictionary of plain values. `small`
    asks for sizes that two CPU cores manage. Rows are kept as they come, so the most important come first."""
    limit: int
    """Seconds. A part has more if more is left than the parts after it may take."""
    environment: Mapping[str, str] = {}


# One large pool: a training step needs a buffer of half of the memory at once.
POOL = {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}

DEVICE = Part("device", "tests.device.machine:device", 30)
"""Runs before all others."""

PARTS = (
    Part("train", "tests.device.training:ours", 90, POOL),
    Part("train-torch", "tests.device.training:theirs", 40),
    Part("parity", "tests.device.accuracy:parity", 100),
    Part("throughput", "tests.device.inference:throughput", 75),
    Part("stages", "tests.device.inference:stage_times", 75),
    Part("depthwise", "tests.device.kernels:depthwise", 20),
    Part("deformable", "tests.device.kernels:deformable_attention", 25),
    Part("start", "tests.device.inference:start", 60),
    Part("trace", "tests.device.inference:trace", 35),
    Part("errors", "tests.device.accuracy:errors_by_stage", 45),
    Part("input", "tests.device.input:pipeline", 40),
    Part("train-matcher", "tests.device.training:matcher_on_host", 80, POOL),
    Part("train-variants", "tests.device.training:variants", 100, POOL),
)
