"""Makes batches with recorded draws, and computes the loss by its slow definition, in PyTorch segment by segment."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from fcclip_jax.structs import Prediction, Targets
from fcclip_jax.training.losses.criterion import LossSettings
from tests.training.fixed_draws import FixedDraws

SETTINGS = LossSettings(num_points=32)
OVERSAMPLED, KEPT = 96, 24


class Case(NamedTuple):
    prediction: Prediction
    targets: Targets
    draws: FixedDraws


def case(segments: list[int], *, slots: int = 12, queries: int = 9, classes: int = 5, seed: int = 0) -> Case:
    """One image for each number of segments; the last segment of each has been emptied by the crop."""
    rng = np.random.default_rng(seed)
    batch = len(segments)
    labels = np.full((batch, slots), -1, np.int32)
    segment_map = np.full((batch, 24, 32), 255, np.uint8)
    for row, count in enumerate(segments):
        labels[row, :count] = rng.integers(0, classes, count)
        if count > 1:
            blocks = rng.integers(0, count - 1, (6, 8)).astype(np.uint8)
            segment_map[row, :20] = np.kron(blocks, np.ones((4, 4), np.uint8))[:20]
    mask_logits = rng.normal(scale=3, size=(batch, 6, 8, queries)).astype(np.float32)
    class_logits = rng.normal(scale=2, size=(batch, queries, classes + 2)).astype(np.float32)
    class_logits[..., classes] = -np.inf  # a padded class
    draws = (
        rng.random((batch, *shape, 2), np.float32)
        for shape in ((SETTINGS.num_points,), (slots, OVERSAMPLED), (slots, SETTINGS.num_points - KEPT))
    )
    return Case(
        Prediction(jnp.asarray(mask_logits), jnp.asarray(class_logits)),
        Targets(jnp.asarray(segment_map), jnp.asarray(labels)),
        FixedDraws(*map(jnp.asarray, draws)),
    )


class Slow(NamedTuple):
    """The losses before weighting, PyTorch's gradients of their weighted sum, and the intermediate values."""

    losses: tuple[float, float, float]
    mask_gradient: np.ndarray
    class_gradient: np.ndarray
    queries: np.ndarray  # [B, G]
    costs: list[np.ndarray]  # [Q, segments] of each image


def read(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """[N, h, w] at [N, S, 2]."""
    return F.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def dice(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    probs = logits.sigmoid()
    return 1 - (2 * (probs * masks).sum(-1) + 1) / (probs.sum(-1) + masks.sum(-1) + 1)


def slow(case: Case, settings: LossSettings = SETTINGS) -> Slow:
    mask_logits, class_logits = (torch.tensor(np.asarray(x), requires_grad=True) for x in case.prediction)
    labels = np.asarray(case.targets.labels)
    batch, count, classes = class_logits.shape
    queries, costs = np.full(labels.shape, -1), []
    wanted = torch.full((batch, count), classes - 1)
    mask_losses, dice_losses = [], []
    for row in range(batch):
        shared, candidates, others = (torch.tensor(np.asarray(x[row])) for x in case.draws)
        (real,) = np.nonzero(labels[row] >= 0)
        segment_map = np.asarray(case.targets.segment_map[row])
        masks = torch.tensor(np.stack([segment_map == slot for slot in range(labels.shape[1])]).astype(np.float32))
        logits = mask_logits[row].permute(2, 0, 1)
        with torch.no_grad():
            of_queries = read(logits, shared.expand(count, -1, -1))
            of_masks = read(masks, shared.expand(len(masks), -1, -1))
            cost = np.zeros((count, len(real)), np.float32)
            for i, slot in enumerate(real):
                goal = of_masks[slot].expand(count, -1)
                bce = F.binary_cross_entropy_with_logits(of_queries, goal, reduction="none").mean(-1)
                probs = class_logits[row].softmax(-1)[:, labels[row, slot]]
                cost[:, i] = (
                    settings.mask_weight * bce
                    - settings.class_weight * probs
                    + settings.dice_weight * dice(of_queries, goal)
                )
        costs.append(cost)
        for query, i in zip(*linear_sum_assignment(cost), strict=True):
            slot = real[i]
            queries[row, slot] = query
            wanted[row, query] = int(labels[row, slot])
            with torch.no_grad():
                certainty = read(logits[query][None], candidates[slot][None])[0].abs()
                chosen = candidates[slot][certainty.argsort()[:KEPT]]
                points = torch.cat([chosen, others[slot]])[None]
            found, goal = read(logits[query][None], points)[0], read(masks[slot][None], points)[0]
            mask_losses.append(F.binary_cross_entropy_with_logits(found, goal))
            dice_losses.append(dice(found, goal))
    weight = torch.ones(classes)
    weight[-1] = settings.void_weight
    # The padded class is -inf, whose gradient in PyTorch would be NaN.
    kept = [k for k in range(classes) if k != classes - 2]
    wanted = torch.where(wanted == classes - 1, classes - 2, wanted)
    segments = max(int((labels >= 0).sum()), 1)
    losses = (
        F.cross_entropy(class_logits[..., kept].flatten(0, 1), wanted.flatten(), weight[kept]),
        sum(mask_losses, torch.zeros(())) / segments,
        sum(dice_losses, torch.zeros(())) / segments,
    )
    weights = settings.class_weight, settings.mask_weight, settings.dice_weight
    (sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) + 0 * mask_logits.sum()).backward()
    return Slow(
        tuple(float(loss.detach()) for loss in losses),
        mask_logits.grad.numpy(),
        class_logits.grad.numpy(),
        queries,
        costs,
    )
