"""The errors of a precision by stage, against the same network in float32.

A mask logit near zero that changes its sign changes what a query sees in the next layer, and so everything after it.
Errors are therefore given twice: `rounding` is of stages whose hard thresholds read float32's masks, `result` of the
network as users run it. Both are relative to the largest float32 value; `rms` is the same of root mean squares.
"""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from fcclip_jax.models.precision import FLOAT32, Precision, choose_precision
from tests.parity.evaluation import bucket_of, output_size
from tests.parity.network import Network, Outcome
from tests.parity.pairs import BadFiles, Pair, find_pairs


class Error(NamedTuple):
    """Of one stage: largest error and root mean square, relative to float32's."""

    rounding: float
    rounding_rms: float
    result: float
    result_rms: float


class Comparison(NamedTuple):
    """A precision against float32 on the image of one pair."""

    errors: dict[str, Error]
    agreement: dict[str, float]
    """Share of pixels with the same label, by task."""


def compare(folder: pathlib.Path, name: str) -> Iterator[str]:
    """Yields the lines of a table for each pair in the folder.

    Raises:
        BadFiles: the device does not have the precision, or the folder cannot be read.
    """
    try:
        chosen = choose_precision(name, jax.devices()[0])
    except ValueError as error:
        raise BadFiles(str(error)) from None
    for pair in find_pairs(folder).pairs:
        if "image_u8" not in pair.arrays:
            continue
        found = compare_pair(pair, chosen)
        yield f"{pair.name}, {name} compared with float32:"
        yield f"  {'':28}{'rounding':>10}{'rms':>10}{'result':>10}{'rms':>10}"
        for stage, error in found.errors.items():
            yield f"  {stage:28}" + "".join(f"{value:10.1e}" for value in error)
        for task, share in found.agreement.items():
            yield f"  {task}: {share:.2%} of pixels have the same class"


def compare_pair(pair: Pair, chosen: Precision) -> Comparison:
    """Runs the image of a pair in float32 and in the chosen precision."""
    image = pair.arrays["image_u8"]
    runs = []
    masks: dict[int, np.ndarray] = {}
    for precision in (FLOAT32, chosen):
        with jax.default_matmul_precision(precision.products):
            network = Network(pair, precision)
            free = network.stages(image, {})
            if not masks:
                count = network.description.head.decoder_layers + 1
                masks = {i: np.moveaxis(free[f"dec{i}_pred_masks"][0], 0, -1) for i in range(count)}
            forced = network.stages(image, masks)
            (outcome,) = network.segment([(image, output_size(pair, "output_hw", image))], bucket=bucket_of(pair))
        runs.append((free, forced, outcome))
    (free, forced, outcome), (free_other, forced_other, other) = runs
    last = len(masks) - 1
    stages = {
        **{f"trunk {name}": f"backbone_{name}" for name in ("stem", "res2", "res3", "res4", "res5")},
        **{f"pixel decoder, level {i}": f"pd_multi_scale_{i}" for i in range(3)},
        "mask features": "pd_mask_features",
        **{f"queries after layer {i}": f"dec{i}_output" for i in range(1, last + 1)},
        "mask logits": f"dec{last}_pred_masks",
        "in-vocabulary logits": f"dec{last}_pred_logits",
        "out-of-vocabulary logits": "out_vocab_logits",
        "class probabilities": "class_probs",
    }
    errors = {
        shown: Error(*_error(forced[name], forced_other[name]), *_error(free[name], free_other[name]))
        for shown, name in stages.items()
    }
    height, width = outcome.full_logits.shape[:2]
    labels = {
        "semantic": [each.output.semantic[:height, :width] for each in (outcome, other)],
        "panoptic": [_classes(each)[:height, :width] for each in (outcome, other)],
    }
    same = {task: one == two for task, (one, two) in labels.items()}
    return Comparison(
        errors,
        {task: float(equal.mean()) for task, equal in same.items()},
    )


def _classes(outcome: Outcome) -> np.ndarray:
    """Returns the class of each pixel's panoptic segment, -1 where it has none."""
    segments = outcome.output.segments
    table = np.concatenate([[-1], np.asarray(segments.class_ids)])
    return table[outcome.output.panoptic]


def _error(ours: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    counts = np.isfinite(ours)
    difference, size = (other - ours)[counts].astype(np.float64), ours[counts].astype(np.float64)
    largest = np.abs(difference).max() / np.abs(size).max()
    return float(largest), float(np.sqrt(np.mean(difference**2) / np.mean(size**2)))
