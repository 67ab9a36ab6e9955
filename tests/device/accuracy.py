"""Compares the model on the device with the official code's numbers, and lower precisions with float32."""

import os
import pathlib
import re
from collections.abc import Iterator

import jax
import numpy as np

from fcclip_jax.inference import timing
from fcclip_jax.models.precision import choose_precision
from tests.device import models
from tests.device.running import GOLDEN, Row


def parity(small: bool) -> Iterator[Row]:
    """Yields the counts and the largest errors of `python -m tests.parity` for each folder.

    Raises:
        RuntimeError: a folder cannot be compared, or an array of it falls short.
    """
    wrong = []
    for folder in os.environ[GOLDEN].split(os.pathsep):
        rows, message = compare(pathlib.Path(folder))
        yield from rows
        wrong += [message] * bool(message)
    if wrong:
        raise RuntimeError("; ".join(wrong))


def compare(folder: pathlib.Path) -> tuple[list[Row], str]:
    """Returns a folder's rows, and a sentence about what is wrong with it."""
    from tests.parity.__main__ import main

    lines: list[str] = []

    def write(line: str) -> None:
        lines.append(line)
        print(line)  # kept if the part is killed

    code = main([str(folder)], write)
    counts = re.fullmatch(r"(\d+) compared, (\d+) fall short, (\d+) .*", lines[-1]) if lines else None
    if counts is None:
        return [], f"{folder} cannot be compared"
    names = ("compared", "fall short", "not compared")
    rows: list[Row] = [{"folder": folder.name} | dict(zip(names, map(int, counts.groups()), strict=True))]
    for line in lines:
        if line.startswith("largest errors of "):
            title, errors = line.removeprefix("largest errors of ").split(": ", 1)
            rows.append({"file": title, "largest errors": errors})
    for line in lines:
        if line.endswith("FALLS SHORT") or "FAILED" in line:
            rows.append({"array": " ".join(line.split())[:160]})
    return rows, f"{folder}: {lines[-1]}" if code else ""


def errors_by_stage(small: bool) -> Iterator[Row]:
    """Yields each lower precision's largest difference from float32 after each stage, relative to the largest value."""
    model = models.random(small)
    rng = np.random.default_rng(0)
    size = (96, 128) if small else (512, 512)
    images = rng.integers(0, 256, (1, size[0] // 16, size[1] // 16, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    text, _ = timing.classifier(rng, models.description(small).clip.image.embed_dim)
    found = {}
    for name in models.precisions():
        net = timing.network(model, choose_precision(name, jax.devices()[0]))
        functions = {
            stage: jax.jit(function) for stage, function in timing.stages(net.graphdef, net.precision, size).items()
        }
        features, valid_hw = functions["trunk"](net.state, images, np.asarray([size], np.int32))
        pixels = functions["pixel decoder"](net.state, features, valid_hw)
        masks, probs = functions["mask decoder"](net.state, pixels, features.clip_dense, valid_hw, text)
        arrays = {"res5": features.res5, "mask features": pixels.mask_features, "mask logits": masks, "probs": probs}
        found[name] = {stage: np.asarray(array, np.float64) for stage, array in jax.device_get(arrays).items()}
    exact = found.pop("float32")
    for name, arrays in found.items():
        errors = {
            stage: np.abs(array - exact[stage]).max() / np.abs(exact[stage]).max() for stage, array in arrays.items()
        }
        yield {"precision": name} | errors
