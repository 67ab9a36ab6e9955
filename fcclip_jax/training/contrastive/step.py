"""One step of contrastive pre-training as one program: both towers, the loss of all pairs, gradient, update."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from fcclip_jax.models.building import abstract_model, named_variables, with_values
from fcclip_jax.models.classifiers import normalize
from fcclip_jax.models.descriptions import ClipDescription
from fcclip_jax.models.fcclip import CLIP, normalize_images
from fcclip_jax.structs import CaptionBatch, checked
from fcclip_jax.training import sharding
from fcclip_jax.training.contrastive.loss import contrastive_loss, equal_texts, true_pairs
from fcclip_jax.training.contrastive.optim import ContrastiveOptimSettings, learning_share, optimizer
from fcclip_jax.training.step import TrainState

FRESH_GAMMA = 0.5
"""The scale that a new trunk's residual blocks start with, instead of ConvNeXt's 1e-6: a shallow trunk is stable without."""
FRESH_TOKENS = 0.5
"""The standard deviation of new token embeddings, instead of 0.02, with which all texts have nearly equal embeddings."""
MAX_LOGIT_SCALE = 100.0
"""CLIP's limit (Radford et al., 2021, section 2.5)."""


class ContrastiveMetrics(NamedTuple):
    """A step's measurements, float32."""

    loss: Float[Array, ""]
    image_to_text: Float[Array, ""]
    text_to_image: Float[Array, ""]
    logit_scale: Float[Array, ""]
    learning_rate: Float[Array, ""]
    """Muon's."""
    gradient_norm: Float[Array, ""]
    """Before clipping."""
    gradient_squares: Float[Array, " N"]
    """Each parameter's sum of squared gradients, in the order of sorted names."""

    def losses(self) -> dict[str, float]:
        """Returns the losses by the names that messages give them."""
        return {"from images to texts": float(self.image_to_text), "from texts to images": float(self.text_to_image)}

    def measurements(self) -> dict[str, float]:
        """Returns what the log shows."""
        return {name: float(value) for name, value in self._asdict().items() if name != "gradient_squares"}


def fresh_clip(description: ClipDescription, seed: int) -> dict[str, Float[np.ndarray, "..."]]:
    """Draws the parameters of an untrained CLIP, by name."""
    rngs = np.random.default_rng(seed)

    @jax.jit
    def draw() -> dict[str, jax.Array]:
        clip = CLIP(description, rngs=nnx.Rngs(seed))
        return {f"clip.{name}": value[...] for name, value in named_variables(clip).items()}

    values = dict(jax.device_get(draw()))
    for name, value in values.items():
        if name.endswith(".gamma"):
            values[name] = np.full_like(value, FRESH_GAMMA)
    tokens = values["clip.text.token_embedding"]
    values["clip.text.token_embedding"] = FRESH_TOKENS * rngs.standard_normal(tokens.shape, np.float32)
    return values


def initial_contrastive_state(
    parameters: Mapping[str, np.ndarray], settings: ContrastiveOptimSettings, steps: int, mesh: Mesh
) -> TrainState:
    """Returns the state before the first step: the host's parameters on the mesh, a new optimiser, and their average."""
    placed = sharding.place_parameters(parameters, mesh)
    update = optimizer({name: value.shape for name, value in parameters.items()}, settings, steps)
    shardings = sharding.parameter_shardings(mesh, jax.eval_shape(update.init, placed))
    return TrainState(
        step=sharding.place(np.zeros((), np.int32), sharding.replicated(mesh)),
        parameters=placed,
        optimizer=jax.jit(update.init, out_shardings=shardings)(placed),
        average=sharding.place_parameters(parameters, mesh),
    )


def make_contrastive_step(
    description: ClipDescription, settings: ContrastiveOptimSettings, steps: int, average: float, mesh: Mesh
) -> Callable[[TrainState, CaptionBatch], tuple[TrainState, ContrastiveMetrics]]:
    """Returns the step, jitted for the mesh. It donates the state.

    steps: of the whole run, for the schedule.
    average: the decay of the parameters' exponential moving average.
    """
    model = abstract_model(description)
    shapes = {name: variable.shape for name, variable in named_variables(model).items()}
    update = optimizer(shapes, settings, steps)
    share = learning_share(settings, steps)

    def contrastive_step(state: TrainState, batch: CaptionBatch):
        checked(batch)

        def loss_of(parameters: Mapping[str, Array]):
            clip = with_values(model, parameters).clip
            images, texts = embed_images(clip, batch), normalize(clip.text(batch.tokens))
            images = jax.lax.with_sharding_constraint(images, sharding.batch_sharding(mesh))
            # Every device compares its images with all texts.
            texts = jax.lax.with_sharding_constraint(texts, sharding.replicated(mesh))
            scale = jnp.minimum(jnp.exp(clip.logit_scale[...]), MAX_LOGIT_SCALE)
            positives, shares = true_pairs(batch.image_names, batch.text_names), equal_texts(batch.text_names)
            pair = contrastive_loss(images, texts, positives, shares, scale)
            return (pair[0] + pair[1]) / 2, (*pair, scale)

        (loss, (to_texts, to_images, scale)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.parameters)
        updates, optimizer_state = update.update(grads, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        # The average of the first steps forgets the random start: its decay grows to the configured one.
        age = state.step.astype(jnp.float32)
        decay = jnp.minimum(average, (1 + age) / (10 + age))
        mean = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.average, parameters)
        squares = jnp.stack([jnp.sum(jnp.square(grads[name])) for name in sorted(grads)])
        metrics = ContrastiveMetrics(
            loss=loss,
            image_to_text=to_texts,
            text_to_image=to_images,
            logit_scale=scale,
            learning_rate=settings.learning_rate * share(state.step),
            gradient_norm=jnp.sqrt(jnp.sum(squares)),
            gradient_squares=squares,
        )
        return TrainState(state.step + 1, parameters, optimizer_state, mean), checked(metrics)

    return jax.jit(contrastive_step, donate_argnums=0)


def embed_images(clip: CLIP, batch: CaptionBatch) -> Float[Array, "B E"]:
    """Returns CLIP's embeddings of whole images, of unit length: the mean of the dense features through CLIP's head."""
    size, height, width = batch.images.shape[:3]
    whole = jnp.broadcast_to(jnp.asarray([height, width], jnp.int32), (size, 2))
    images, valid_hw = normalize_images(batch.images, whole)
    dense = clip.image(images, valid_hw).clip_dense
    everywhere = jnp.ones((*dense.shape[:3], 1), bool)
    return normalize(clip.image.embed_masks(dense, valid_hw, everywhere)[:, 0])
