"""One step of training as one program: losses of all outputs, gradient, update (Yu et al., section 4.1)."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int, PyTree

from fcclip_jax.models.building import abstract_model, named_variables, with_values
from fcclip_jax.models.descriptions import ModelDescription
from fcclip_jax.models.fcclip import FCCLIP, normalize_images
from fcclip_jax.models.layers import Stack
from fcclip_jax.models.precision import weight_dtype
from fcclip_jax.structs import Batch, Prediction, Targets, TextClassifier, checked
from fcclip_jax.training import sharding
from fcclip_jax.training.losses.criterion import (
    Losses,
    LossSettings,
    LossSums,
    mean_losses,
    output_losses,
    weighted_total,
)
from fcclip_jax.training.losses.points import RandomDraws
from fcclip_jax.training.one_pass import sum_in_one_pass
from fcclip_jax.training.optim import OptimSettings, learning_rate, optimizer
from fcclip_jax.training.parameters import is_trainable

Parameters = Mapping[str, Array]
"""Arrays by the names that `named_variables` gives them."""


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Int[Array, ""]
    """The number of updates so far."""
    parameters: dict[str, Array]
    """The trainable parameters, float32."""
    optimizer: PyTree
    average: dict[str, Array] | None
    """The parameters' exponential moving average, if one is kept."""


class StepSettings(NamedTuple):
    """A step's settings, apart from the model."""

    losses: LossSettings = LossSettings()
    optim: OptimSettings = OptimSettings()
    compute_dtype: str = "bfloat16"
    """The trunk's and the mask decoder's dtype. Parameters, pixel decoder and losses are float32, as officially; with
    float64 the pixel decoder is float64 too."""
    deform_attn_precision: str | None = None
    """The precision of the TPU kernel's products, as `ms_deform_attn` takes it."""
    remat: bool = False
    """True recomputes the layers' activations in the backward pass instead of keeping them."""
    accumulate: int = 1
    """The number of parts that a batch is computed in, one after the other. The result is the whole batch's."""
    train_trunk: bool = False
    """True if CLIP's image trunk trains too (the paper's table 6)."""
    average: float | None = None
    """Decay of the parameters' exponential moving average; None keeps no average."""
    seed: int = 0
    """Seed of the points at which masks are compared."""


class StepMetrics(NamedTuple):
    """A step's measurements, float32. O: outputs of the mask decoder, the last layer's last."""

    loss: Float[Array, ""]
    cross_entropy: Float[Array, " O"]
    mask: Float[Array, " O"]
    dice: Float[Array, " O"]
    segments: Float[Array, ""]
    """Segments in the whole batch."""
    learning_rate: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    """Before clipping."""
    gradient_squares: Float[Array, " N"]
    """Each parameter's sum of squared gradients, in the order of sorted names."""

    def losses(self) -> dict[str, float]:
        """Returns the losses by the names that messages give them."""
        return {
            f"{name} of output {output}": float(value)
            for name in ("cross_entropy", "mask", "dice")
            for output, value in enumerate(getattr(self, name))
        }

    def measurements(self) -> dict[str, float]:
        """Returns what the log shows."""
        names = ("cross_entropy", "mask", "dice")
        return {
            "loss": float(self.loss),
            **{name: float(getattr(self, name).sum()) for name in names},
            **{f"{name}/{output}": float(value) for name in names for output, value in enumerate(getattr(self, name))},
            "segments": float(self.segments),
            "gradient_norm": float(self.gradient_norm),
            "learning_rate": float(self.learning_rate),
        }


def skeleton(description: ModelDescription, settings: StepSettings) -> FCCLIP:
    """Returns the model without values and without the text tower, which only runs before the first step."""
    model = abstract_model(description)
    del model.clip.text
    model.mask_decoder.remat = settings.remat
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Stack):
            module.remat = settings.remat
    if description.head.encoder_layers:
        model.pixel_decoder.layers.stacked.self_attn.precision = settings.deform_attn_precision
    return model


def frozen_dtype(name: str, settings: StepSettings) -> np.dtype:
    """Returns a frozen parameter's dtype: compute_dtype, but float32 for vectors, as in inference."""
    return weight_dtype(name, settings.compute_dtype)


def initial_state(parameters: Mapping[str, np.ndarray], settings: StepSettings, mesh: Mesh) -> TrainState:
    """Returns the state before the first step: the host's trainable parameters on the mesh, and a new optimiser."""
    placed = sharding.place_parameters(parameters, mesh)
    update = optimizer(parameters, settings.optim)
    shardings = sharding.parameter_shardings(mesh, jax.eval_shape(update.init, placed))
    average = None
    if settings.average is not None:
        # A copy: a step donates the memory of each of its arguments, which can be done only once.
        average = sharding.place_parameters(parameters, mesh)
    return TrainState(
        step=sharding.place(np.zeros((), np.int32), sharding.replicated(mesh)),
        parameters=placed,
        optimizer=jax.jit(update.init, out_shardings=shardings)(placed),
        average=average,
    )


def make_train_step(
    model: FCCLIP, settings: StepSettings, mesh: Mesh
) -> Callable[[TrainState, Parameters, TextClassifier, Batch], tuple[TrainState, StepMetrics]]:
    """Returns the step, jitted for the mesh. It donates the state.

    The step's other arguments are the frozen parameters, the training vocabulary's classifier (without padding), and a
    batch of images of the crop's size.

    model: as `skeleton` returns it.
    """

    trainable = [name for name in named_variables(model) if is_trainable(name, settings.train_trunk)]
    update = optimizer(trainable, settings.optim)
    rate = learning_rate(settings.optim)

    def train_step(state: TrainState, frozen: Parameters, text: TextClassifier, batch: Batch):
        for struct in (text, batch):
            checked(struct)

        def loss_of(parameters: Parameters, part: Batch):
            return batch_losses(with_values(model, {**frozen, **parameters}), text, part, batch.targets, settings, mesh)

        # Each part computes its share of the batch's means: shares and their gradients add up to the whole batch's.
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, losses), grads = _add_up(lambda part: gradient(state.parameters, part), batch, settings.accumulate)
        updates, optimizer_state = update.update(grads, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        average = state.average
        if average is not None:
            average = optax.incremental_update(parameters, average, 1 - settings.average)
        squares = jnp.stack([jnp.sum(jnp.square(grads[name])) for name in sorted(grads)])
        metrics = StepMetrics(
            loss,
            *losses,
            segments=jnp.sum(batch.targets.labels >= 0, dtype=jnp.float32),
            learning_rate=jnp.asarray(rate(state.step), jnp.float32),
            gradient_norm=jnp.sqrt(jnp.sum(squares)),
            gradient_squares=squares,
        )
        return TrainState(state.step + 1, parameters, optimizer_state, average), checked(metrics)

    return jax.jit(train_step, donate_argnums=0)


def batch_losses(
    model: FCCLIP, text: TextClassifier, part: Batch, targets: Targets, settings: StepSettings, mesh: Mesh
) -> tuple[Float[Array, ""], Losses]:
    """Returns the part's share of the whole batch's loss, and of its means, one for every output of the mask decoder.

    targets: the whole batch's.
    """
    dtype = jnp.dtype(settings.compute_dtype)
    by_image = sharding.batch_sharding(mesh)
    height, width = part.images.shape[1:3]
    # Training has no padding: pixels with which the augmentation fills up an image count as image.
    crop_hw = jnp.broadcast_to(jnp.asarray([height, width], jnp.int32), (part.images.shape[0], 2))
    images, valid_hw = normalize_images(part.images, crop_hw, dtype)
    features = model.clip.image(images, valid_hw)
    if not settings.train_trunk:
        features = jax.lax.stop_gradient(features)
    features = _constrain(_cast(features, np.promote_types(dtype, jnp.float32)), by_image)
    pixels = _constrain(_cast(model.pixel_decoder(features, valid_hw), dtype), by_image)
    queries = jnp.stack(model.mask_decoder(pixels, valid_hw))
    seed = jax.random.key(settings.seed)

    def local_sums(prediction: Prediction, targets: Targets, positions: Int[Array, " b"], output: Int[Array, ""]):
        sums = output_losses(prediction, targets, RandomDraws(seed, positions, output), settings.losses)
        return jax.tree.map(lambda x: x[None], sums)

    # Each device matches and draws points for its own images.
    rows = sharding.BATCH
    local_sums = jax.shard_map(
        local_sums, mesh=mesh, in_specs=(rows, rows, rows, None), out_specs=rows, check_vma=False
    )

    # The outputs' full-size masks are never in memory together.
    def output_loss(output: Int[Array, ""], queries: Float[Array, "B Q C"]) -> tuple[Float[Array, ""], Losses]:
        prediction = model.mask_decoder.predict(
            queries, pixels.mask_features, valid_hw, text, model.void_embedding[...]
        )
        sums = jax.tree.map(jnp.sum, local_sums(prediction, part.targets, part.positions, output))
        losses = mean_losses(whole_batch(sums, targets, queries.shape[1], settings.losses.void_weight))
        return weighted_total(losses, settings.losses), losses

    return sum_in_one_pass(output_loss, queries)


def whole_batch(sums: LossSums, targets: Targets, queries: int, void_weight: float) -> LossSums:
    """Replaces a part's counts by those of the whole batch, which follow from its targets alone.

    The means of the part's sums are then its share of the whole batch's means.
    """
    segments = jnp.sum(targets.labels >= 0, axis=1)
    matched = jnp.minimum(segments, queries).astype(jnp.float32)
    weights = jnp.sum(matched + void_weight * (queries - matched))
    return sums._replace(class_weights=weights, segments=jnp.sum(segments).astype(jnp.float32))


def _add_up(function: Callable[[Batch], PyTree], batch: Batch, parts: int) -> PyTree:
    """Sums the function over the parts of the batch. Every device has its share of every part."""
    if parts == 1:
        return function(batch)
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
    start = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, jax.tree.map(lambda x: x[0], split))
    )

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(add, start, split)[0]


def _cast(tree: PyTree, dtype: jnp.dtype) -> PyTree:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def _constrain(tree: PyTree, by_image: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, by_image), tree)
