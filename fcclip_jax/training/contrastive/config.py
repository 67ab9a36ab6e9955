"""The values that a configuration of contrastive pre-training may have, checked before anything is read or computed."""

from typing import NamedTuple

from ml_collections import ConfigDict

from fcclip_jax.conventions import STRIDE
from fcclip_jax.data.captions import Size
from fcclip_jax.training.config import check_least
from fcclip_jax.training.contrastive.optim import ContrastiveOptimSettings

AT_LEAST = {
    "steps": 1,
    "seed": 0,
    "log_every": 1,
    "data.workers": 0,
    "data.first_steps": 0,
    "optim.learning_rate": 0,
    "optim.adam_learning_rate": 0,
    "optim.text_multiplier": 0,
    "optim.weight_decay": 0,
    "optim.warmup_steps": 0,
    "optim.clip_norm": 0,
    "checkpoint.every": 1,
    "checkpoint.keep_last": 1,
    "eval.every": 0,
    "eval.scenes": 0,
}


class ContrastiveSettings(NamedTuple):
    """The settings of a run, apart from model and data."""

    steps: int
    sizes: tuple[Size, ...]
    first_steps: int
    """Steps that read the first size alone."""
    optim: ContrastiveOptimSettings
    average: float
    """Decay of the parameters' exponential moving average, which is the result."""


def contrastive_settings(config: ConfigDict) -> ContrastiveSettings:
    """Returns the configuration's settings, after checking all of its values.

    Raises:
        ValueError: a value is impossible; the message names it.
    """
    check_least(config, AT_LEAST)
    sizes = []
    for row in config.data.sizes:
        if len(row) != 3 or min(row) < 1 or row[0] % STRIDE:
            raise ValueError(
                f"data.sizes has {tuple(row)}; give (pixels, images, captions of each image), at least 1, with pixels a"
                f" multiple of {STRIDE}"
            )
        sizes.append(Size(*row))
    if not sizes:
        raise ValueError("data.sizes is empty; give at least one (pixels, images, captions of each image)")
    if not 0 < config.average < 1:
        raise ValueError(
            f"average is {config.average}; the moving average's decay must be between 0 and 1, such as 0.999"
        )
    return ContrastiveSettings(
        config.steps, tuple(sizes), config.data.first_steps, ContrastiveOptimSettings(**config.optim), config.average
    )
