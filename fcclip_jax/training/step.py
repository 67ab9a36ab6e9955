"""One step of training as one program: losses of all outputs, gradient, update (Yu et al., section 4.1)."""

import functools
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
from fcclip_jax.structs import Batch, Prediction, Targets, TextClassifier
from fcclip_jax.training import sharding
from fcclip_jax.training.losses.criterion import LossSettings, LossSums, mean_losses, output_losses, weighted_total
from fcclip_jax.training.losses.points import RandomDraws
from fcclip_jax.training.optim import OptimSettings, learning_rate, optimizer
from fcclip_jax.training.parameters import is_statistic, is_trainable

Parameters = Mapping[str, Array]
"""By `named_variables`' names."""


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Int[Array, ""]
    """How many updates have been made."""
    parameters: dict[str, Array]
    """The trainable ones, float32."""
    optimizer: PyTree
    average: dict[str, Array] | None
    """The parameters' exponential moving average, if there is one."""


class StepSettings(NamedTuple):
    """What a step computes, beside the model."""

    losses: LossSettings = LossSettings()
    optim: OptimSettings = OptimSettings()
    compute_dtype: str = "bfloat16"
    """Of the trunk and the mask decoder; parameters, pixel decoder and losses are float32, as officially.
    With float64 the pixel decoder is that too."""
    deform_attn_precision: str | None = None
    """`ms_deform_attn`'s: of the TPU kernel's products."""
    remat: bool = False
    """Whether the backward pass computes layers again instead of keeping what is inside them."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other; the result is that of the whole."""
    train_trunk: bool = False
    """Whether CLIP's image trunk trains too (the paper's table 6), not only what is on top of it."""
    average: float | None = None
    """Decay of the parameters' exponential moving average."""
    seed: int = 0
    """Of the points that masks are compared at."""


class StepMetrics(NamedTuple):
    """What a step says about itself; all float32. O outputs of the mask decoder, the last layer's last."""

    loss: Float[Array, ""]
    cross_entropy: Float[Array, " O"]
    mask: Float[Array, " O"]
    dice: Float[Array, " O"]
    segments: Float[Array, ""]
    """In the whole batch."""
    learning_rate: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    """Before clipping."""
    gradient_squares: Float[Array, " N"]
    """The sum of squares of each parameter's gradient, by sorted names."""


def skeleton(description: ModelDescription, settings: StepSettings) -> FCCLIP:
    """The model without values and without the text tower, which training runs once, before the first step."""
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
    """Returns a frozen parameter's dtype: the one that it is used in, float32 for batch statistics, which bfloat16 would spoil."""
    return np.dtype(np.float32 if is_statistic(name) else jnp.dtype(settings.compute_dtype))


def initial_state(parameters: Mapping[str, np.ndarray], settings: StepSettings, mesh: Mesh) -> TrainState:
    """Before the first step: the trainable parameters (on the host) on the mesh, and an optimiser without a past."""
    placed = sharding.place_parameters(parameters, mesh)
    update = optimizer(parameters, settings.optim)
    shardings = sharding.parameter_shardings(mesh, jax.eval_shape(update.init, placed))
    average = None
    if settings.average is not None:
        # A copy: a step gives the memory of its arguments away, each only once.
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
    """The step, jitted for the mesh; the state is donated.

    model: `skeleton`'s. The step's other arguments: the frozen parameters, the training vocabulary's classifier
    (without padding), and a batch whose images are all of the crop's size.
    """

    trainable = [name for name in named_variables(model) if is_trainable(name, settings.train_trunk)]
    update = optimizer(trainable, settings.optim)
    rate = learning_rate(settings.optim)

    def train_step(state: TrainState, frozen: Parameters, text: TextClassifier, batch: Batch):
        def loss_of(parameters: Parameters, part: Batch):
            sums = batch_losses(with_values(model, {**frozen, **parameters}), text, part, settings, mesh)
            queries = model.mask_decoder.query_feat.shape[0]
            losses = mean_losses(whole_batch(sums, batch.targets, queries, settings.losses.void_weight))
            return jnp.sum(weighted_total(losses, settings.losses)), losses

        # Of the batch's means, each part's share: shares and their gradients add up to the whole batch's.
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
        return TrainState(state.step + 1, parameters, optimizer_state, average), metrics

    return jax.jit(train_step, donate_argnums=0)


def batch_losses(model: FCCLIP, text: TextClassifier, batch: Batch, settings: StepSettings, mesh: Mesh) -> LossSums:
    """Sums of the losses over the batch, [O] of each: one for every output of the mask decoder."""
    dtype = jnp.dtype(settings.compute_dtype)
    by_image = sharding.batch_sharding(mesh)
    height, width = batch.images.shape[1:3]
    # Training has no padding: what the augmentation fills an image up with counts as picture.
    crop_hw = jnp.broadcast_to(jnp.asarray([height, width], jnp.int32), (batch.images.shape[0], 2))
    images, valid_hw = normalize_images(batch.images, crop_hw, dtype)
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

    # Matching and points stay where their image is.
    rows = sharding.BATCH
    local_sums = jax.shard_map(
        local_sums, mesh=mesh, in_specs=(rows, rows, rows, None), out_specs=rows, check_vma=False
    )

    # Ten outputs, one piece of code: their masks at full size are never in memory together, nor kept.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("matching", "points"))
    def output_sums(_, x):
        output, queries = x
        prediction = model.mask_decoder.predict(
            queries, pixels.mask_features, valid_hw, text, model.void_embedding[...]
        )
        return None, jax.tree.map(jnp.sum, local_sums(prediction, batch.targets, batch.positions, output))

    return jax.lax.scan(output_sums, None, (jnp.arange(queries.shape[0], dtype=jnp.int32), queries))[1]


def whole_batch(sums: LossSums, targets: Targets, queries: int, void_weight: float) -> LossSums:
    """The sums of a part of a batch, to be divided by the counts of all of it, which its targets already tell."""
    segments = jnp.sum(targets.labels >= 0, axis=1)
    matched = jnp.minimum(segments, queries).astype(jnp.float32)
    weights = jnp.sum(matched + void_weight * (queries - matched))
    return sums._replace(class_weights=weights[None], segments=jnp.sum(segments).astype(jnp.float32)[None])


def _add_up(function: Callable[[Batch], PyTree], batch: Batch, parts: int) -> PyTree:
    """The sum of what the function says of every part of the batch. Every device has its share of every part."""
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
