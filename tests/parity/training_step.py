"""Runs one training step of production code with recorded random draws, and returns all intermediate values."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fcclip_jax.models.building import named_variables, with_values
from fcclip_jax.models.fcclip import FCCLIP, normalize_images
from fcclip_jax.structs import Prediction, Targets, TextClassifier
from fcclip_jax.training.losses.criterion import Losses, LossSettings, mean_losses, output_losses, weighted_total
from fcclip_jax.training.losses.matcher import match, matching_costs
from fcclip_jax.training.losses.points import choose_points, pack
from fcclip_jax.training.optim import OptimSettings, optimizer
from fcclip_jax.training.parameters import is_trainable
from tests.parity.stages import mask_stages
from tests.training.fixed_draws import FixedDraws

Parameters = Mapping[str, np.ndarray | jax.Array]


class TrainingBatch(NamedTuple):
    """The images of a step, padded to one size; the padding counts as image, as in official training."""

    images: np.ndarray  # [B, H, W, 3] uint8
    image_hw: np.ndarray  # [B, 2]
    targets: Targets


class StepOutcome(NamedTuple):
    """The results of a step, one of each for every output of the decoder in its order, as NumPy arrays."""

    prediction: Prediction
    costs: np.ndarray  # [O, B, Q, G]
    queries: np.ndarray  # [O, B, G]
    points: np.ndarray  # [O, P, S, 2]
    losses: Losses
    total: np.ndarray
    gradients: dict[str, np.ndarray]


class TrainingStep:
    """The model's losses and gradients, and the optimiser."""

    def __init__(self, model: FCCLIP, text: TextClassifier, settings: LossSettings):
        variables = named_variables(model)
        self.parameters = {
            name: np.asarray(variable[...])
            for name, variable in variables.items()
            if is_trainable(name, train_trunk=False)
        }
        self._frozen = {name: variable[...] for name, variable in variables.items() if name not in self.parameters}
        self._text = text
        self._run = jax.jit(functools.partial(_run, model, settings), static_argnames="force")
        self.optimizer = optimizer(self.parameters, OptimSettings())
        self._update = jax.jit(self._apply)

    def run(
        self, parameters: Parameters, batch: TrainingBatch, draws: FixedDraws, masks: np.ndarray | None = None
    ) -> StepOutcome:
        """Runs a step. `draws` has a first axis of outputs; `masks` [O, B, h, w, Q] decide hard thresholds."""
        return jax.device_get(
            self._run(parameters, self._frozen, self._text, batch, draws, masks, force=masks is not None)
        )

    def update(self, gradients: Parameters, state: optax.OptState, parameters: Parameters):
        """Returns the parameters after an update, and the optimiser's state."""
        return self._update(dict(gradients), state, dict(parameters))

    def _apply(self, gradients, state, parameters):
        updates, state = self.optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state


def _run(
    model, settings, parameters, frozen, text, batch: TrainingBatch, draws: FixedDraws, masks, *, force
) -> StepOutcome:
    def loss(parameters):
        filled = with_values(model, {**frozen, **parameters})
        predictions = _predictions(filled, text, batch, masks, force)

        def visit(_, x):
            prediction, draws = x
            return None, (
                _look(prediction, batch.targets, draws, settings),
                _losses(prediction, batch, draws, settings),
            )

        looks, losses = jax.lax.scan(visit, None, (predictions, draws))[1]
        total = jnp.sum(weighted_total(losses, settings))
        return total, StepOutcome(predictions, *looks, losses, total, {})

    gradients, outcome = jax.grad(loss, has_aux=True)(parameters)
    return outcome._replace(gradients=gradients)


def _predictions(model: FCCLIP, text: TextClassifier, batch: TrainingBatch, masks, force: bool) -> Prediction:
    """Stacks the values of every output."""
    pixels, _ = normalize_images(batch.images, batch.image_hw)
    whole = jnp.broadcast_to(jnp.asarray(batch.images.shape[1:3], jnp.int32), batch.image_hw.shape)
    features = jax.lax.stop_gradient(model.clip.image(pixels, whole))
    pixels = model.pixel_decoder(features, whole)
    if force:
        out = {}
        always = jnp.ones(len(masks), bool)
        mask_stages(model, pixels, whole, text, masks, always, out)
        logits = jnp.stack([out[f"dec{i}_pred_masks"] for i in range(len(masks))])
        classes = jnp.stack([out[f"dec{i}_pred_logits"] for i in range(len(masks))])
        return Prediction(jnp.moveaxis(logits, 2, -1), classes)
    queries = jnp.stack(model.mask_decoder(pixels, whole))
    void = model.void_embedding[...]
    return jax.lax.map(lambda q: model.mask_decoder.predict(q, pixels.mask_features, whole, text, void), queries)


def _losses(prediction: Prediction, batch: TrainingBatch, draws: FixedDraws, settings: LossSettings) -> Losses:
    return mean_losses(output_losses(prediction, batch.targets, draws, settings))


def _look(prediction: Prediction, targets: Targets, draws: FixedDraws, settings: LossSettings):
    """Returns the costs, matching and points that `output_losses` does not return."""
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
    points = choose_points(
        prediction.mask_logits,
        pack(queries),
        draws,
        num_points=settings.num_points,
        oversampled=int(settings.num_points * settings.oversample_ratio),
        kept=int(settings.importance_share * settings.num_points),
    )
    return costs, queries, points
