"""The parts of the report, those with the least evidence so far first, and their time limits on an H100."""

from collections.abc import Mapping
from typing import NamedTuple


class Part(NamedTuple):
    """A function that checks or times something in a process of its own."""

    name: str
    function: str
    """module:name of a function (small: bool) → iterator of rows, each of which is a dictionary of plain values. `small`
    asks for sizes that two CPU cores manage. Rows are kept as they come, so the most important come first."""
    limit: int
    """Seconds."""
    environment: Mapping[str, str] = {}


DEVICE = Part("device", "tests.device.machine:device", 60)
"""Runs before all others."""

PARTS = (
    # One large pool: a training step needs a buffer of half of the memory at once.
    Part("train", "tests.device.training:ours", 150, {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}),
    Part("train-torch", "tests.device.training:theirs", 60),
    Part("parity", "tests.device.accuracy:parity", 100),
    Part("throughput", "tests.device.inference:throughput", 120),
    Part("stages", "tests.device.inference:stage_times", 60),
    Part("errors", "tests.device.accuracy:errors_by_stage", 60),
    Part("depthwise", "tests.device.kernels:depthwise", 45),
    # XLA reads its flags when it starts, hence a process of its own.
    Part("depthwise-nhwc", "tests.device.kernels:depthwise", 45, {"XLA_FLAGS": "--xla_gpu_force_conv_nhwc=true"}),
    Part("deformable", "tests.device.kernels:deformable_attention", 60),
    Part("start", "tests.device.inference:start", 90),
    Part("trace", "tests.device.inference:trace", 60),
    Part("train-variants", "tests.device.training:variants", 200, {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}),
)
