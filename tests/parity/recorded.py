"""Converts the recorded step's inputs, draws and names into this project's form.

The official order of the decoder's outputs is the last first, then 0, 1, ...: points are drawn, pairs matched and
arrays numbered in that order. An output's pairs are ordered by image, and in each image by ascending query.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from convert import fcclip as table
from convert.rules import ConversionError, to_ours, to_torch
from fcclip_jax.structs import Targets
from fcclip_jax.training.losses.criterion import LossSettings
from tests.parity.network import Network
from tests.parity.pairs import BadFiles, Pair
from tests.parity.training_step import StepOutcome, TrainingBatch, TrainingStep
from tests.training.fixed_draws import FixedDraws

SPARE_SLOTS = 3
"""The number of empty slots after the real segments."""

OVERLAP = 1e-4
"""The maximum share of an image that two target masks may have in common. Panoptic ground truth has no such pixels;
they are assigned to the first mask, and the report lists them."""


class Names(NamedTuple):
    """Converts between our trainable parameters and the official ones."""

    family: str
    shapes: Mapping[str, tuple[int, ...]]

    def official(self, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return to_torch({name: np.asarray(x) for name, x in parameters.items()}, table.rules(self.family), {})

    def ours(self, pair: Pair, prefix: str) -> dict[str, np.ndarray]:
        """Returns the arrays with this prefix; none unless every parameter has one."""
        found = {name.removeprefix(prefix): x for name, x in pair.arrays.items() if re.match(rf"{prefix}.*\.", name)}
        if not self.by_key().keys() <= found.keys():
            return {}
        try:
            loaders = {key: (lambda x=x: x) for key, x in found.items()}
            return to_ours(loaders, table.rules(self.family), (), self.shapes)[0]
        except ConversionError as error:
            raise BadFiles(f"{prefix}* of {pair.path} are not the trainable weights: {error}") from error

    def by_key(self) -> dict[str, str]:
        """Returns our name of each official key."""
        names = list(self.shapes)
        numbered = self.official({name: np.full(self.shapes[name], i) for i, name in enumerate(names)})
        return {key: names[int(i.flat[0])] for key, i in numbered.items()}


class Inputs(NamedTuple):
    """The inputs of a step."""

    batch: TrainingBatch
    settings: LossSettings
    outputs: tuple[int, ...]
    """Our number of each output, in the official order."""


def read_inputs(pair: Pair, network: Network) -> Inputs | None:
    """Returns None if the file does not have all of them."""
    count = sum(re.fullmatch(r"image\d+_u8", name) is not None for name in pair.arrays)
    outputs = network.description.head.decoder_layers + 1
    needed = [f"{name.format(i)}" for name in ("image{}_u8", "gt{}_labels", "target{}_masks") for i in range(count)]
    needed += [f"rand_{i:03d}" for i in range(outputs * (count + 2))]
    if not count or not set(needed) <= pair.arrays.keys():
        return None
    masks = [pair.arrays[f"target{i}_masks"].astype(bool) for i in range(count)]
    labels = [pair.arrays[f"gt{i}_labels"] for i in range(count)]
    if max(np.mean(x.sum(0) > 1) for x in masks) > OVERLAP:
        raise BadFiles(f"{pair.path} has target masks that overlap; panoptic segments never do")
    shape = masks[0].shape[1:]
    slots = max(map(len, labels)) + SPARE_SLOTS
    images = np.zeros((count, *shape, 3), np.uint8)
    segment_map = np.full((count, *shape), 255, np.uint8)
    padded = np.full((count, slots), -1, np.int32)
    for i in range(count):
        image = pair.arrays[f"image{i}_u8"]
        images[i, : image.shape[0], : image.shape[1]] = image
        segment_map[i][masks[i].any(0)] = masks[i].argmax(0)[masks[i].any(0)]
        padded[i, : len(labels[i])] = labels[i]
    points, candidates, others = (pair.arrays[f"rand_{i:03d}"].shape[1] for i in (0, count, count + 1))
    return Inputs(
        TrainingBatch(
            images,
            np.int32([pair.arrays[f"image{i}_u8"].shape[:2] for i in range(count)]),
            Targets(segment_map, padded),
        ),
        LossSettings(
            num_points=points, oversample_ratio=candidates / points, importance_share=(points - others) / points
        ),
        (outputs - 1, *range(outputs - 1)),
    )


def run(step: TrainingStep, parameters, pair: Pair, inputs: Inputs, number: int, masks=None) -> StepOutcome:
    """The step of that number. Draws for pairs are in the order of the queries: these must be known beforehand."""
    slots = inputs.batch.targets.labels
    nobody = np.full((len(inputs.outputs), *slots.shape), -1)
    first = step.run(parameters, inputs.batch, draws(pair, inputs, number, nobody), masks)
    return step.run(parameters, inputs.batch, draws(pair, inputs, number, first.queries), masks)


def draws(pair: Pair, inputs: Inputs, number: int, queries: np.ndarray) -> FixedDraws:
    """Those of a step, for outputs in our order; `queries` [O, B, G]."""
    batch, slots = inputs.batch.targets.labels.shape
    calls = batch + 2
    start = number * calls * len(inputs.outputs)
    found = []
    for output in range(len(inputs.outputs)):
        call = start + calls * inputs.outputs.index(output)
        shared = np.concatenate([pair.arrays[f"rand_{call + i:03d}"] for i in range(batch)])
        of_pairs = []
        for array in (pair.arrays[f"rand_{call + batch + i:03d}"] for i in range(2)):
            of_slots = np.zeros((batch, slots, *array.shape[1:]), np.float32)
            for i, place in enumerate(official_order(queries[output])):
                of_slots[place] = array[i]
            of_pairs.append(of_slots)
        found.append((shared, *of_pairs))
    return FixedDraws(*map(np.stack, zip(*found, strict=True)))


def official_order(queries: np.ndarray) -> list[tuple[int, int]]:
    """Returns (row, slot) of the matched pairs of an output."""
    places = [(row, int(slot)) for row in range(len(queries)) for slot in np.argsort(queries[row], kind="stable")]
    return [place for place in places if queries[place] >= 0]
