"""Reads the traces that JAX's profiler writes for Chrome: gzipped JSON."""

import gzip
import json
import pathlib
from collections import defaultdict
from typing import Any, NamedTuple


class KernelTime(NamedTuple):
    """All executions of one kernel."""

    name: str
    source: str
    """The JAX operation that it belongs to, if the trace has it."""
    seconds: float
    calls: int


def kernel_times(folder: str) -> list[KernelTime]:
    """Returns the kernels of a profile, the longest first.

    On a GPU they are the events of the device's streams; a CPU has no such lines, so its threads of XLA stand for them.

    Raises:
        ValueError: the folder has no trace, or the trace has no kernels.
    """
    files = sorted(pathlib.Path(folder).rglob("*.trace.json.gz"))
    if not files:
        raise ValueError(f"the profiler wrote no trace into {folder}")
    return sum_kernels(json.loads(gzip.decompress(files[-1].read_bytes()))["traceEvents"])


def sum_kernels(events: list[dict[str, Any]]) -> list[KernelTime]:
    """Sums complete events ("X", durations in microseconds) by name over the lines that hold kernels."""
    named = [event for event in events if event.get("ph") == "M"]
    processes = {event["pid"]: event["args"]["name"] for event in named if event["name"] == "process_name"}
    threads = {(event["pid"], event["tid"]): event["args"]["name"] for event in named if event["name"] == "thread_name"}
    lines = {key for key, name in threads.items() if "/device:" in processes.get(key[0], "") and "Stream" in name}
    if not lines:
        lines = {key for key, name in threads.items() if name.startswith("tf_XLA")}
    seconds, calls, sources = defaultdict(float), defaultdict(int), {}
    for event in events:
        if event.get("ph") == "X" and (event["pid"], event["tid"]) in lines:
            seconds[event["name"]] += event["dur"] / 1e6
            calls[event["name"]] += 1
            arguments = event.get("args", {})
            sources[event["name"]] = str(arguments.get("name") or arguments.get("tf_op") or arguments.get("hlo_op", ""))
    if not seconds:
        raise ValueError(f"the trace has no kernels; its lines are {sorted(set(threads.values()))}")
    found = [KernelTime(name, sources[name], seconds[name], calls[name]) for name in seconds]
    return sorted(found, key=lambda entry: -entry.seconds)
