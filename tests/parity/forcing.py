"""Runs again with other signs of the few mask logits near zero, whose signs rounding decides.

The sign of a mask logit is used in three places: at the masks' own stride, where features are pooled; at the stride of
the next layer's keys, where it decides which cells a query may attend to; and at stride 32, where CLIP's features are
pooled under the last masks. One sign affects everything after it, so failed arrays are computed again: with the signs
of the recorded masks or, without recorded masks, with either sign for the logits nearest to zero.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from fcclip_jax.models.pixel_decoder import LEVEL_STRIDES
from tests.parity.network import Network

NOISE = 4e-6
"""The noise of a mask logit, relative to the largest: the official code differs by this much between machines."""

NEAREST = 3
"""The number of logits whose signs may change at once."""


class Sign(NamedTuple):
    """A mask logit near zero, and the place where its sign is used."""

    relative: float  # to the largest logit
    logit: float
    forced: float
    prediction: int
    stride: int
    place: tuple[int, int, int]  # query, row, column

    def __str__(self) -> str:
        query, row, column = self.place
        where = f"dec{self.prediction} query {query} at ({row}, {column}) of stride {self.stride}"
        return f"{where}: logit {self.logit:.1e}, forced to {self.forced:.1e}"


def reruns(
    network: Network, image: np.ndarray, recorded: Mapping[int, np.ndarray], tolerance: float
) -> Iterator[tuple[list[Sign], dict[str, np.ndarray]]]:
    """Yields the image's stages again, with the signs that differ from the first run. `recorded` is [Q, h, w]."""
    arrays = network.stages(image, {})
    own = {i: arrays[f"dec{i}_pred_masks"][0] for i in range(network.description.head.decoder_layers + 1)}
    signs = signs_near_zero({i: (own[i], recorded[i]) for i in recorded.keys() & own.keys()}, tolerance)
    crossed = [sign for sign in signs if (sign.logit > 0) != (sign.forced > 0)]
    # The decoder computes coarse logits in another order, so their signs may differ from those of the masks.
    if signs := crossed or [sign for sign in signs if sign.relative <= NOISE]:
        yield signs, network.stages(image, {i: np.moveaxis(masks, 0, -1) for i, masks in recorded.items()})
    nearest = sorted(signs_near_zero({i: (masks, masks) for i, masks in own.items()}, NOISE))[:NEAREST]
    for count in range(1, len(nearest) + 1):
        for some in itertools.combinations(nearest, count):
            for sides in itertools.product((-1.0, 1.0), repeat=count):
                masks = {i: own[i].copy() for i in {sign.prediction for sign in some}}
                turned = [_turn(masks[sign.prediction], sign, side) for sign, side in zip(some, sides, strict=True)]
                yield turned, network.stages(image, {i: np.moveaxis(x, 0, -1) for i, x in masks.items()})


def recorded_masks(arrays: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """Returns the official mask logits [Q, h, w] of each prediction that has them."""
    found = ((re.fullmatch(r"dec(\d+)_pred_masks", name), value) for name, value in arrays.items())
    return {int(match[1]): value[0] for match, value in found if match}


def shrunk(mask_logits: np.ndarray, factor: int) -> np.ndarray:
    """Downsamples [..., H, W] by an even factor: the mean of the middle four cells."""
    if factor == 1:
        return mask_logits
    near = slice(factor // 2 - 1, None, factor), slice(factor // 2, None, factor)
    return sum(mask_logits[..., rows, columns] for rows in near for columns in near) / 4


def signs_near_zero(pairs: Mapping[int, tuple[np.ndarray, np.ndarray]], limit: float) -> list[Sign]:
    """Returns every logit of (ours, candidates) whose candidate is at most `limit` of the largest from zero."""
    found = []
    for i, (masks, others) in pairs.items():
        largest = float(np.abs(others).max())
        strides = {4, LEVEL_STRIDES[i % len(LEVEL_STRIDES)], *LEVEL_STRIDES[:1] * (i == max(pairs))}
        for stride in sorted(strides):
            ours, forced = shrunk(masks, stride // 4), shrunk(others, stride // 4)
            for place in np.argwhere(np.abs(forced) <= limit * largest):
                place = tuple(map(int, place))
                relative = abs(float(forced[place])) / largest
                found.append(Sign(relative, float(ours[place]), float(forced[place]), i, stride, place))
    return found


def _turn(masks: np.ndarray, sign: Sign, side: float) -> Sign:
    """Moves the cells under a logit just enough to give it that sign."""
    factor = sign.stride // 4
    query, row, column = sign.place
    middle = (factor // 2 - 1, factor // 2) if factor > 1 else (0,)
    # Twice the noise exceeds any rounding, and is far below most cells under a coarse logit.
    logit = np.float32(side * 2 * NOISE * np.abs(masks).max())
    for y, x in itertools.product(middle, middle):
        masks[query, row * factor + y, column * factor + x] += logit - np.float32(sign.logit)
    return sign._replace(forced=float(logit))
