"""The official optimiser (train_net.py of the official code): AdamW in parameter groups, clipping of the whole gradient's
norm, and a learning rate that drops twice.

All trees are flat dictionaries of the trainable parameters, by the names that `named_variables` gives them.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from fcclip_jax.training.muon import scale_matrices
from fcclip_jax.training.parameters import group_of


class OptimSettings(NamedTuple):
    """The official recipe for COCO panoptic; the milestones are those of 368,750 steps with 16 images each."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    """Not negligible: clipped gradients come near it."""
    clip_norm: float = 0.01
    """The largest norm of all gradients together."""
    milestones: tuple[int, ...] = (327_778, 355_092)
    """Steps at which the learning rate is multiplied by `drop`."""
    drop: float = 0.1
    trunk_multiplier: float = 0.1
    """Multiplies the learning rate of CLIP's image trunk, where the trunk trains."""
    muon_learning_rate: float | None = None
    """If given, matrices take Muon's steps at this rate instead of Adam's: a short training of a small head gets further.
    It follows the milestones and the multiplier as `learning_rate` does."""


class Hyperparameters(NamedTuple):
    """A parameter's share of the optimiser's settings."""

    multiplier: float
    """Multiplies the learning rate."""
    weight_decay: float


def hyperparameters(name: str, settings: OptimSettings) -> Hyperparameters:
    """Returns how the optimiser treats a parameter.

    Raises:
        ValueError: the parameter never trains, or belongs to no group.
    """
    group = group_of(name)
    if group.trains == "never":
        raise ValueError(f"the parameter {name} never trains ({group.description}); leave it out of the optimiser")
    multiplier = settings.trunk_multiplier if group.slowed else 1.0
    return Hyperparameters(multiplier, settings.weight_decay if group.decays else 0.0)


def learning_rate(settings: OptimSettings) -> optax.Schedule:
    """Returns the rate of each step, counted from 0. The official schedule starts at the full rate."""
    rates = np.asarray(
        [settings.learning_rate * settings.drop**i for i in range(len(settings.milestones) + 1)], np.float32
    )
    starts = np.sort(np.asarray(settings.milestones, np.int32))

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.asarray(rates)[jnp.sum(jnp.asarray(starts) <= step)]

    return rate


def optimizer(names: Iterable[str], settings: OptimSettings) -> optax.GradientTransformation:
    """Returns the optimiser of the named parameters.

    Raises:
        ValueError: one of the parameters never trains, or belongs to no group.
    """
    groups = {name: hyperparameters(name, settings) for name in names}
    chain = optax.chain(
        clip_by_norm(settings.clip_norm),
        _steps(settings, {name for name in groups if is_matrix(name)}),
        _decay({name: group.weight_decay for name, group in groups.items()}),
        _multiply({name: group.multiplier for name, group in groups.items()}),
        optax.scale_by_learning_rate(learning_rate(settings)),
    )

    def update(gradients, state, parameters=None):
        # Optax raises floats to whole powers, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(gradients, state, parameters)

    return optax.GradientTransformation(chain.init, update)


def is_matrix(name: str) -> bool:
    """Returns whether a trained parameter multiplies vectors: a linear layer's weight, or a convolution's of all channels."""
    return group_of(name).decays and name.endswith("weight") and not name.endswith("conv_dw.weight")


def _steps(settings: OptimSettings, matrices: Collection[str]) -> optax.GradientTransformation:
    """Returns Adam's steps, or Muon's for matrices where the settings have a rate for it."""
    adam = optax.scale_by_adam(*settings.betas, settings.eps)
    if settings.muon_learning_rate is None:
        return adam
    muon = optax.chain(scale_matrices(), optax.scale(settings.muon_learning_rate / settings.learning_rate))

    def split(tree: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        ours = {name: array for name, array in tree.items() if name in matrices}
        return ours, {name: array for name, array in tree.items() if name not in matrices}

    def init(parameters: Mapping[str, Array]) -> dict[str, PyTree]:
        ours, others = split(parameters)
        return {"muon": muon.init(ours), "adam": adam.init(others)}

    def update(gradients: Mapping[str, Array], state: dict[str, PyTree], parameters=None):
        del parameters
        ours, others = split(gradients)
        ours, muon_state = muon.update(ours, state["muon"])
        others, adam_state = adam.update(others, state["adam"])
        return {**ours, **others}, {"muon": muon_state, "adam": adam_state}

    return optax.GradientTransformation(init, update)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Clips as `torch.nn.utils.clip_grad_norm_` does: multiplies by limit / (norm + 1e-6), unless that is above 1."""

    def clip(gradients: Mapping[str, Array], parameters: Mapping[str, Array] | None) -> dict[str, Array]:
        del parameters
        factor = jnp.minimum(limit / (optax.tree.norm(gradients) + 1e-6), 1)
        return jax.tree.map(lambda gradient: gradient * factor, dict(gradients))

    return optax.stateless(clip)


def _decay(rates: Mapping[str, float]) -> optax.GradientTransformation:
    def decay(updates: Mapping[str, Array], parameters: Mapping[str, Array]) -> dict[str, Array]:
        return {name: update + rates[name] * parameters[name] for name, update in updates.items()}

    return optax.stateless(decay)


def _multiply(factors: Mapping[str, float]) -> optax.GradientTransformation:
    def multiply(updates: Mapping[str, Array], parameters: Mapping[str, Array] | None) -> dict[str, Array]:
        del parameters
        return {name: factors[name] * update for name, update in updates.items()}

    return optax.stateless(multiply)
