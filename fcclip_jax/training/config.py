"""The values that a configuration may have, checked before anything is read or computed."""

import typing
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from fcclip_jax.conventions import NO_SEGMENT, STRIDE
from fcclip_jax.data.transforms import SCALES
from fcclip_jax.training.losses.criterion import LossSettings
from fcclip_jax.training.losses.matcher import Matcher
from fcclip_jax.training.optim import OptimSettings
from fcclip_jax.training.step import StepSettings
from fcclip_jax.world.panoptic import DESIGNS
from pallas_kernels.deform_attn.api import PRECISIONS

AT_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "seed": 0,
    "log_every": 1,
    "data.world.images": 1,
    "data.crop": STRIDE,
    "data.examples": 0,
    "data.max_segments": 1,
    "data.workers": 0,
    "losses.num_points": 4,
    "losses.oversample_ratio": 1,
    "optim.learning_rate": 0,
    "optim.weight_decay": 0,
    "optim.clip_norm": 0,
    "checkpoint.every": 1,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_best": 0,
    "eval.every": 0,
    "eval.images": 1,
    "eval.pictures": 0,
    "eval.short_side": 1,
}
CHOICES = {
    "checkpoint.best": (None, "pq", "sq", "rq", "pq_things", "pq_stuff"),
    "compute_dtype": ("bfloat16", "float32", "float64"),
    "data.world.designs": tuple(DESIGNS),
    "deform_attn_precision": (None, *PRECISIONS),
    "losses.matcher": typing.get_args(Matcher),
}


def step_settings(config: ConfigDict) -> StepSettings:
    """Returns the configuration's settings of a step, after checking all of its values.

    Raises:
        ValueError: a value is impossible; the message names it, whether it concerns a step or not.
    """
    check_least(config, AT_LEAST)
    for name, choices in CHOICES.items():
        if _value(config, name) not in choices:
            raise ValueError(f"{name} is {_value(config, name)!r}; choose one of {', '.join(map(str, choices))}")
    if config.data.crop % STRIDE:
        raise ValueError(f"data.crop is {config.data.crop}; it must be a multiple of {STRIDE}")
    if len(config.data.jitter) != 2 or not 0 < config.data.jitter[0] <= config.data.jitter[1]:
        raise ValueError(
            f"data.jitter is {config.data.jitter}; it must be the smallest and the largest scale, such as {SCALES}"
        )
    if config.data.max_segments > NO_SEGMENT:
        raise ValueError(
            f"data.max_segments is {config.data.max_segments}; the limit is {NO_SEGMENT}, since segment maps have 8 bits"
        )
    if config.eval.max_side < config.eval.short_side:
        raise ValueError(f"eval.max_side {config.eval.max_side} is less than eval.short_side {config.eval.short_side}")
    if not 0 <= config.losses.importance_share <= 1:
        raise ValueError(f"losses.importance_share is {config.losses.importance_share}; it must be from 0 to 1")
    if config.average is not None and not 0 < config.average < 1:
        raise ValueError(
            f"average is {config.average}; the moving average's decay must be between 0 and 1, such as 0.9999"
        )
    muon = config.optim.muon_learning_rate
    if muon is not None and not (muon > 0 and config.optim.learning_rate > 0):
        raise ValueError(
            f"optim.muon_learning_rate is {muon} and optim.learning_rate {config.optim.learning_rate}; with Muon, both must be"
            " above 0"
        )
    if config.compute_dtype == "float64" and not jax.config.jax_enable_x64:
        raise ValueError("compute_dtype is float64, which needs JAX_ENABLE_X64=1 in the environment")
    return StepSettings(
        losses=LossSettings(**config.losses),
        optim=OptimSettings(**config.optim),
        compute_dtype=config.compute_dtype,
        deform_attn_precision=config.deform_attn_precision,
        remat=config.remat,
        accumulate=config.accumulate,
        train_trunk=config.train_trunk,
        average=config.average,
        seed=config.seed,
    )


def check_least(config: ConfigDict, at_least: Mapping[str, int]) -> None:
    """Raises ValueError if a value, named by its dotted path, is less than it may be."""
    for name, least in at_least.items():
        if not _value(config, name) >= least:
            raise ValueError(f"{name} is {_value(config, name)}; it must be at least {least}")


def _value(config: ConfigDict, name: str) -> object:
    for part in name.split("."):
        config = config[part]
    return config
