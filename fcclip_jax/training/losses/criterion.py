"""The training loss of one prediction (criterion.py of the official code): classes, and masks at points.

    prediction, targets -> match -> pairs -> points -> sums -> means over the whole batch -> one number

Sums and means are separate because the batch is spread over devices: each device sums over its own images, the sums are
added up, and only then divided.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fcclip_jax.structs import Prediction, Targets, checked
from fcclip_jax.training.losses.matcher import Matcher, match, matching_costs
from fcclip_jax.training.losses.points import PointDraws, choose_points, pack, pair_targets, sample_pairs


class LossSettings(NamedTuple):
    """The official recipe's settings. The matching costs have the same weights."""

    num_points: int = 12544
    """Points at which a mask is compared, in matching and in the loss: 112 x 112."""
    oversample_ratio: float = 3.0
    """The candidates for uncertain points, as a multiple of `num_points`."""
    importance_share: float = 0.75
    """The share of uncertain points in `num_points`; the rest is uniform."""
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    void_weight: float = 0.1
    """The weight of a query without a segment in the classes' cross-entropy; other queries weigh 1."""
    matcher: Matcher = "optax"


class LossSums(NamedTuple):
    """Sums over some images, to be added up over devices. They belong to one output, or to each of several.

    Counts that all outputs share may have an axis of 1 in the place of O.
    """

    cross_entropy: Float[Array, "*O"]
    """Weighted, over queries."""
    class_weights: Float[Array, "*#O"]
    """The sum of those weights."""
    mask: Float[Array, "*O"]
    """Binary cross-entropy, a mean over points, summed over matched segments."""
    dice: Float[Array, "*O"]
    segments: Float[Array, "*#O"]
    """The number of segments, including those without a query."""


class Losses(NamedTuple):
    """Means over the whole batch before weighting, for one output or for each of several."""

    cross_entropy: Float[Array, "*O"]
    mask: Float[Array, "*O"]
    dice: Float[Array, "*O"]


def output_losses(prediction: Prediction, targets: Targets, draws: PointDraws, settings: LossSettings) -> LossSums:
    """Sums the losses of one of the decoder's predictions. The matching and the chosen points have no gradient."""
    prediction = checked(Prediction(*(logits.astype(jnp.float32) for logits in prediction)))
    checked(targets)
    costs = matching_costs(
        prediction,
        targets,
        draws,
        num_points=settings.num_points,
        class_weight=settings.class_weight,
        mask_weight=settings.mask_weight,
        dice_weight=settings.dice_weight,
    )
    queries = match(costs, targets.labels, settings.matcher)
    cross_entropy, class_weights = class_sums(prediction.class_logits, queries, targets.labels, settings.void_weight)

    pairs = pack(queries)
    points = choose_points(
        prediction.mask_logits,
        pairs,
        draws,
        num_points=settings.num_points,
        oversampled=int(settings.num_points * settings.oversample_ratio),
        kept=int(settings.importance_share * settings.num_points),
    )
    logits = sample_pairs(prediction.mask_logits, pairs, points)
    real = jnp.arange(logits.shape[0], dtype=jnp.int32) < pairs.count
    mask, dice = mask_losses(logits, pair_targets(targets.segment_map, pairs, points))
    return checked(
        LossSums(
            cross_entropy=cross_entropy,
            class_weights=class_weights,
            mask=jnp.sum(mask, where=real),
            dice=jnp.sum(dice, where=real),
            segments=jnp.sum(targets.labels >= 0, dtype=jnp.float32),
        )
    )


def class_sums(
    class_logits: Float[Array, "B Q K1"],
    queries: Int[Array, "B G"],
    labels: Int[Array, "B G"],
    void_weight: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the weighted cross-entropy over all queries, and the sum of the weights. A query without a segment is void."""
    batch, count, classes = class_logits.shape
    # Queries of -1 are out of bounds here, as a negative index would not be.
    place = jnp.where(queries >= 0, queries, count)
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None]
    expected = jnp.full((batch, count), classes - 1, jnp.int32)
    expected = expected.at[rows, place].set(labels.astype(jnp.int32), mode="drop")
    log_probs = jax.nn.log_softmax(class_logits, axis=-1)
    losses = -jnp.take_along_axis(log_probs, expected[..., None], axis=-1)[..., 0]
    weights = jnp.where(expected == classes - 1, jnp.float32(void_weight), jnp.float32(1))
    return jnp.sum(weights * losses), jnp.sum(weights)


def mask_losses(
    logits: Float[Array, "P S"], targets: Float[Array, "P S"]
) -> tuple[Float[Array, " P"], Float[Array, " P"]]:
    """Returns binary cross-entropy, a mean over points, and dice. Targets are in [0, 1]."""
    cross_entropy = jnp.mean(jax.nn.softplus(logits) - logits * targets, axis=-1)
    probs = jax.nn.sigmoid(logits)
    overlap = jnp.sum(probs * targets, axis=-1)
    areas = jnp.sum(probs, axis=-1) + jnp.sum(targets, axis=-1)
    return cross_entropy, 1 - (2 * overlap + 1) / (areas + 1)


def mean_losses(sums: LossSums) -> Losses:
    """Divides sums over the whole batch, all devices included, by their counts."""
    checked(sums)
    segments = jnp.maximum(sums.segments, 1)
    return Losses(sums.cross_entropy / sums.class_weights, sums.mask / segments, sums.dice / segments)


def weighted_total(losses: Losses, settings: LossSettings) -> Float[Array, "*O"]:
    """Returns each output's share of the loss that training minimises. All outputs weigh the same."""
    return (
        settings.class_weight * losses.cross_entropy
        + settings.mask_weight * losses.mask
        + settings.dice_weight * losses.dice
    )
