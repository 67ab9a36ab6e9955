"""The optimiser of contrastive pre-training: Muon for matrices, Adam for everything else.

In a first trial (217 words in three designs, pictures of one thing), a CLIP named 5.6 % of the things after 9,000 pictures
with Muon (Jordan et al., 2024), and 0.4 % after 38,000 with AdamW.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from fcclip_jax.training.muon import scale_matrices

MATRIX = re.compile(r".*(fc1|fc2|head_proj|head_fc1|head_fc2|out_proj|c_fc|c_proj|downsample_conv|stem_conv|patch_conv)\.weight|.*(in_proj_weight|text_projection|image_projection)")  # fmt: skip
"""Parameters that multiply vectors: the last axis is the outputs, those before it the inputs. Depthwise kernels and
embeddings are not among them."""


class ContrastiveOptimSettings(NamedTuple):
    """The rates are peaks: the warm-up rises to them linearly, and a cosine over the whole run lowers them to a fiftieth."""

    learning_rate: float = 0.02
    """Muon's, of matrices: about the spectral norm of a step. One of more outputs than inputs has it multiplied by the root
    of their ratio."""
    adam_learning_rate: float = 3e-3
    """Adam's, of the image tower's other parameters and the logit scale."""
    text_multiplier: float = 0.3
    """Multiplies Adam's rate in the text tower, whose embeddings all texts share."""
    weight_decay: float = 0.05
    """Of matrices; relative to their rate."""
    warmup_steps: int = 100
    clip_norm: float = 1.0
    """The limit of the gradients' norm, over all parameters."""


def learning_share(settings: ContrastiveOptimSettings, steps: int) -> optax.Schedule:
    """Returns the factor of both rates at each step, counted from 0."""

    def share(step: Int[Array, ""]) -> Float[Array, ""]:
        step = step.astype(jnp.float32)
        warm = jnp.minimum(1.0, (step + 1) / max(settings.warmup_steps, 1))
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1.0)))
        return warm * (0.02 + 0.98 * cosine)

    return share


def optimizer(
    shapes: Mapping[str, tuple[int, ...]], settings: ContrastiveOptimSettings, steps: int
) -> optax.GradientTransformation:
    """Returns the optimiser of a CLIP's parameters, by name, for a run of `steps`. Its update needs the parameters.

    shapes: of all parameters, by the names that `named_variables` gives them.
    """
    matrices = [name for name in shapes if MATRIX.fullmatch(name)]
    slowed = {
        name: settings.text_multiplier if name.startswith("clip.text.") else 1.0
        for name in shapes
        if name not in matrices
    }
    clip = optax.clip_by_global_norm(settings.clip_norm)
    muon, adam = scale_matrices(), optax.scale_by_adam(0.9, 0.98)
    share = learning_share(settings, steps)

    def init(parameters: Mapping[str, Array]) -> PyTree:
        return {
            "muon": muon.init({name: parameters[name] for name in matrices}),
            "adam": adam.init({name: parameters[name] for name in slowed}),
            "step": jnp.zeros((), jnp.int32),
        }

    def update(gradients: Mapping[str, Array], state: PyTree, parameters: Mapping[str, Array] | None = None):
        # Optax mixes dtypes, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            gradients, _ = clip.update(dict(gradients), clip.init(gradients))
            steps_of_matrices, muon_state = muon.update({name: gradients[name] for name in matrices}, state["muon"])
            steps_of_others, adam_state = adam.update({name: gradients[name] for name in slowed}, state["adam"])
            now = share(state["step"])
            updates = {
                name: -now * settings.learning_rate * (step + settings.weight_decay * parameters[name])
                for name, step in steps_of_matrices.items()
            } | {
                name: -now * settings.adam_learning_rate * slowed[name] * step for name, step in steps_of_others.items()
            }
        return updates, {"muon": muon_state, "adam": adam_state, "step": state["step"] + 1}

    return optax.GradientTransformation(init, update)
