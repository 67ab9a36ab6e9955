"""The official optimiser (train_net.py of the official code): AdamW in groups, one clip, a rate that drops twice.

Everything is by a parameter's name, as `named_variables` gives it, over a flat dictionary of the trainable
parameters.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int


class OptimSettings(NamedTuple):
    """The official recipe for COCO panoptic, of 368,750 steps with 16 images each."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    """Not negligible: clipped as they are, gradients come near it."""
    clip_norm: float = 0.01
    """Of all gradients together."""
    milestones: tuple[int, ...] = (327_778, 355_092)
    """Steps from which on the learning rate is `drop` times what it was."""
    drop: float = 0.1
    trunk_multiplier: float = 0.1
    """Of the learning rate of CLIP's image trunk, where that is trained too."""


class Group(NamedTuple):
    """Parameters that are treated alike."""

    what: str
    names: str
    """A regular expression of the whole name."""
    in_trunk: bool
    decays: bool


GROUPS = (
    Group("CLIP's normalisation layers", r"clip\.image\..*(norm|bn)\d?\.(weight|bias)", in_trunk=True, decays=False),
    Group("the rest of CLIP's image trunk", r"clip\.image\..*", in_trunk=True, decays=True),
    Group("normalisation layers", r".*norm\d?\.(weight|bias)", in_trunk=False, decays=False),
    Group("queries", r"mask_decoder\.(query_feat|query_embed)", in_trunk=False, decays=False),
    # Of the two level embeddings one is officially an embedding layer, and the other a parameter, which decays.
    Group("the mask decoder's levels, void", r"mask_decoder\.level_embed|void_embedding", in_trunk=False, decays=False),
    Group("the rest, biases included", r"(pixel_decoder|mask_decoder)\..*", in_trunk=False, decays=True),
)
"""The first that matches counts."""


class Treatment(NamedTuple):
    """What a group comes to."""

    multiplier: float
    """Of the learning rate."""
    weight_decay: float


def treatment(name: str, settings: OptimSettings) -> Treatment:
    """How a parameter is trained.

    Raises:
        ValueError: no group knows the name.
    """
    for group in GROUPS:
        if re.fullmatch(group.names, name):
            multiplier = settings.trunk_multiplier if group.in_trunk else 1.0
            return Treatment(multiplier, settings.weight_decay if group.decays else 0.0)
    raise ValueError(f"the parameter {name} belongs to no group of the optimiser; add it to optim.GROUPS")


def learning_rate(settings: OptimSettings) -> optax.Schedule:
    """The rate of each step, counted from 0. There is no warm-up: the official one starts at the full rate."""
    rates = np.asarray(
        [settings.learning_rate * settings.drop**i for i in range(len(settings.milestones) + 1)], np.float32
    )
    starts = np.sort(np.asarray(settings.milestones, np.int32))

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.asarray(rates)[jnp.sum(jnp.asarray(starts) <= step)]

    return rate


def optimizer(names: Iterable[str], settings: OptimSettings) -> optax.GradientTransformation:
    """From the gradients of the named parameters to what is added to them.

    Raises:
        ValueError: no group knows one of the names.
    """
    groups = {name: treatment(name, settings) for name in names}
    beta1, beta2 = settings.betas
    chain = optax.chain(
        clip_by_norm(settings.clip_norm),
        optax.scale_by_adam(beta1, beta2, settings.eps),
        _decay({name: group.weight_decay for name, group in groups.items()}),
        _multiply({name: group.multiplier for name, group in groups.items()}),
        optax.scale_by_learning_rate(learning_rate(settings)),
    )

    def update(gradients, state, parameters=None):
        # Optax raises floats to whole powers, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(gradients, state, parameters)

    return optax.GradientTransformation(chain.init, update)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """`torch.nn.utils.clip_grad_norm_`: times limit / (norm + 1e-6), unless that is above 1."""

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
