"""A table of the parameters that train and how, by name, for the optimiser, the training step and conversion."""

import re
from typing import Literal, NamedTuple

Trains = Literal["always", "with_trunk", "never"]
"""`with_trunk`: only where CLIP's image trunk trains too (the paper's table 6)."""


class Group(NamedTuple):
    """Parameters that the optimiser treats alike."""

    description: str
    pattern: str
    """A regular expression of the whole name, as `named_variables` gives it."""
    trains: Trains
    decays: bool = False
    """True applies weight decay."""
    slowed: bool = False
    """True multiplies the learning rate by `OptimSettings.trunk_multiplier`."""


STATISTICS = Group("batch normalisation's statistics", r"clip\.image\..*\.running_(mean|var)", "never")

GROUPS = (
    Group("CLIP's text tower and scale", r"clip\.text\..*|clip\.logit_scale", "never"),
    Group("the image tower's own head", r"clip\.image\.(head|attnpool).*", "never"),
    STATISTICS,
    Group(
        "normalisation in CLIP's image trunk",
        r"clip\.image\..*(norm|bn)\d?\.(weight|bias)",
        "with_trunk",
        decays=False,
        slowed=True,
    ),
    Group("the rest of CLIP's image trunk", r"clip\.image\..*", "with_trunk", decays=True, slowed=True),
    Group("normalisation", r".*norm\d?\.(weight|bias)", "always", decays=False),
    Group("queries", r"mask_decoder\.(query_feat|query_embed)", "always", decays=False),
    # Of the two level embeddings one is officially an embedding layer, and the other a parameter, which decays.
    Group("the mask decoder's levels, void", r"mask_decoder\.level_embed|void_embedding", "always", decays=False),
    Group("the rest of the head, biases included", r"(pixel_decoder|mask_decoder)\..*", "always", decays=True),
)
"""A parameter belongs to the first group whose pattern matches its name."""


def group_of(name: str) -> Group:
    """Returns the parameter's group.

    Raises:
        ValueError: no group matches the name.
    """
    for group in GROUPS:
        if re.fullmatch(group.pattern, name):
            return group
    raise ValueError(f"the parameter {name} matches no group; add one to fcclip_jax.training.parameters.GROUPS")


def is_trainable(name: str, train_trunk: bool) -> bool:
    """Returns whether training changes the parameter.

    Raises:
        ValueError: no group matches the name.
    """
    trains = group_of(name).trains
    return trains == "always" or (trains == "with_trunk" and train_trunk)


def is_statistic(name: str) -> bool:
    """Returns whether the parameter is one of batch normalisation's statistics, which PyTorch holds as buffers."""
    return group_of(name) is STATISTICS
