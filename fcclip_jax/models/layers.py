"""The network's basic layers. Attributes have PyTorch's names, so that conversion is a table.

Weights are [in, out] and [kh, kw, in, out]. Each layer computes in its input's dtype: with bfloat16 inputs it runs in
bfloat16, except for statistics and the softmax, which are in float32 (`precision.py`). `mask` arguments are 1 where a
position belongs to the image and 0 where it is padding of the bucket.
"""

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.conventions import ceil_div

Initializer = Callable[..., jax.Array]

xavier_uniform = nnx.initializers.xavier_uniform()
torch_default = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's Linear and Conv2d default, Kaiming-uniform with a = sqrt(5): U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
c2_xavier = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""fvcore's c2_xavier_fill: Kaiming-uniform with a = 1."""
unit_normal = nnx.initializers.normal(1.0)


class Linear(nnx.Module):
    """A linear layer: y = x @ weight + bias. The initial bias is PyTorch's if the weights are, else zero."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        init: Initializer = torch_default,
        rngs: nnx.Rngs,
    ):
        self.weight = nnx.Param(init(rngs.params(), (in_features, out_features)))
        bound = in_features**-0.5 if init is torch_default else 0.0
        start = jax.random.uniform(rngs.params(), (out_features,), minval=-bound, maxval=bound) if bias else None
        self.bias = nnx.Param(start) if bias else None

    def __call__(self, x: Float[Array, "*batch in"], *, wide: bool = False) -> Float[Array, "*batch out"]:
        """Applies the layer.

        wide: returns sums in at least float32, not rounded to the dtype of `x`.
        """
        dtype = wide_dtype(x) if wide else x.dtype
        y = jnp.matmul(x, self.weight[...].astype(x.dtype), preferred_element_type=dtype)
        return y if self.bias is None else y + add_dims(self.bias[...], y)


class MLP(nnx.Module):
    """Linear layers with ReLU between them (Mask2Former's `MLP`)."""

    def __init__(self, in_features: int, hidden: int, out_features: int, depth: int, *, rngs: nnx.Rngs):
        sizes = [in_features] + [hidden] * (depth - 1) + [out_features]
        self.layers = nnx.List([Linear(i, o, rngs=rngs) for i, o in itertools.pairwise(sizes)])

    def __call__(self, x: Float[Array, "*batch in"], *, wide: bool = False) -> Float[Array, "*batch out"]:
        """Applies the layers, the last one with `wide` as in `Linear`."""
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x, wide=wide)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, in at least float32."""

    def __init__(self, features: int, *, eps: float = 1e-5, rngs: nnx.Rngs):
        del rngs  # nothing random
        self.weight = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        return layer_norm(x, self.weight[...], self.bias[...], self.eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*batch C"], weight: Float[Array, " C"], bias: Float[Array, " C"], eps: float
) -> Float[Array, "*batch C"]:
    """Normalises the last axis, in at least float32.

    The gradient recomputes everything from `x`, as `gelu`'s does.
    """
    wide = x.astype(wide_dtype(x))
    normal, _ = _normal(wide, eps)
    return (normal * add_dims(weight, wide) + add_dims(bias, wide)).astype(x.dtype)


def _normal(wide: Float[Array, "*batch C"], eps: float) -> tuple[Float[Array, "*batch C"], Float[Array, "*batch 1"]]:
    """Returns `wide` with mean 0 and variance 1 along the last axis, and the factor that it was multiplied by."""
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    centred = wide - mean
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(variance + eps)
    return centred * factor, factor


def _layer_norm_forward(x: Float[Array, "*batch C"], weight: Float[Array, " C"], bias: Float[Array, " C"], eps: float):
    return layer_norm(x, weight, bias, eps), (x, weight, bias)


def _layer_norm_backward(eps: float, residuals: tuple[Array, Array, Array], gradient: Float[Array, "*batch C"]):
    x, weight, bias = residuals
    wide, of_output = x.astype(wide_dtype(x)), gradient.astype(wide_dtype(x))
    normal, factor = _normal(wide, eps)
    scaled = of_output * add_dims(weight, wide)
    along = jnp.mean(scaled * normal, axis=-1, keepdims=True)
    of_x = factor * (scaled - jnp.mean(scaled, axis=-1, keepdims=True) - normal * along)
    positions = tuple(range(x.ndim - 1))
    of_weight, of_bias = jnp.sum(of_output * normal, axis=positions), jnp.sum(of_output, axis=positions)
    return of_x.astype(x.dtype), of_weight.astype(weight.dtype), of_bias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class Conv(nnx.Module):
    """A 2-D convolution. `weight` is [kh, kw, in, out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        init: Initializer = torch_default,
        rngs: nnx.Rngs,
    ):
        self.weight = nnx.Param(init(rngs.params(), (kernel, kernel, in_features, out_features)))
        self.bias = nnx.Param(jnp.zeros(out_features)) if bias else None
        self.stride, self.padding = stride, padding

    def __call__(self, x: Float[Array, "B H W in"]) -> Float[Array, "B h w out"]:
        y = jax.lax.conv_general_dilated(
            x,
            self.weight[...].astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=((self.padding, self.padding),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y if self.bias is None else y + add_dims(self.bias[...], y)


class GroupNorm(nnx.Module):
    """Group normalisation by the image alone, without the padding of its bucket, in at least float32."""

    groups, eps = 32, 1e-5

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        del rngs  # nothing random
        self.weight = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Float[Array, "B h w C"], mask: Float[Array, "B h w 1"]) -> Float[Array, "B h w C"]:
        batch, _, _, features = x.shape
        wide = x.astype(wide_dtype(x))
        mask = mask.astype(wide.dtype)
        count = jnp.sum(mask, axis=(1, 2, 3))[:, None, None, None] * (features // self.groups)

        def group_mean(values: Float[Array, "B h w C"]) -> Float[Array, "B 1 1 C"]:
            channel_sums = jnp.sum(values * mask, axis=(1, 2)).reshape(batch, self.groups, -1)
            sums = jnp.repeat(jnp.sum(channel_sums, axis=-1), features // self.groups, axis=-1)
            return sums[:, None, None, :] / count

        centred = wide - group_mean(wide)
        variance = group_mean(jnp.square(centred))
        normal = centred * jax.lax.rsqrt(variance + self.eps)
        return (normal * add_dims(self.weight[...], wide) + add_dims(self.bias[...], wide)).astype(x.dtype)


class Attention(nnx.Module):
    """torch.nn.MultiheadAttention: the three input projections in one matrix."""

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs):
        self.in_proj_weight = nnx.Param(xavier_uniform(rngs.params(), (features, 3 * features)))
        self.in_proj_bias = nnx.Param(jnp.zeros(3 * features))
        self.out_proj = Linear(features, features, init=xavier_uniform, rngs=rngs)
        self.heads = heads

    def __call__(
        self,
        query: Float[Array, "B S C"],
        key: Float[Array, "B N C"],
        value: Float[Array, "B N C"],
        mask: Bool[Array, "#B #S #N"] | None = None,
    ) -> Float[Array, "B S C"]:
        """Attends where `mask` is True, by default everywhere. A row that is False throughout gives NaN."""
        weights = jnp.split(self.in_proj_weight[...].astype(query.dtype), 3, axis=1)
        biases = jnp.split(self.in_proj_bias[...].astype(query.dtype), 3)
        q, k, v = (
            (x @ w + b[None, None, :]).reshape(*x.shape[:2], self.heads, -1)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        mixed = _mix_values(q, k, v, None if mask is None else mask[:, None, :, :])
        return self.out_proj(mixed.reshape(query.shape))


@jax.checkpoint
def _mix_values(
    q: Float[Array, "B S M D"],
    k: Float[Array, "B N M D"],
    v: Float[Array, "B N M D"],
    mask: Bool[Array, "#B 1 #S #N"] | None,
) -> Float[Array, "B S M D"]:
    """Sums the values, weighted by attention. Its gradient recomputes the weights, which are larger than all else."""
    scaled = q * q.shape[-1] ** -0.5
    logits = jnp.einsum("bshd,bnhd->bhsn", scaled, k, preferred_element_type=wide_dtype(q))
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    return jnp.einsum("bhsn,bnhd->bshd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)


class Stack(nnx.Module):
    """Equal modules, applied one after the other.

    Their parameters are stacked along a leading axis and a scan applies them, so that one copy of the code is compiled
    instead of `length`; `unroll` ends that.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], length: int, *, rngs: nnx.Rngs):
        self.length = length
        self.remat = False
        """True recomputes the values inside a module in training instead of keeping them."""
        self.stacked = nnx.vmap(make, axis_size=length)(rngs.split(length)) if length else None
        self.modules = nnx.List()
        """The modules one by one, after `unroll`."""

    def unroll(self) -> None:
        """Replaces `stacked` by `modules`, whose values are views on the host, and the scan by the code of each module.

        A scan copies each module's parameters out of the stack before it reads them: of a ConvNeXt-L, 0.8 GB an image.
        """
        if self.stacked is not None:
            graphdef, stacked = nnx.split(self.stacked)
            stacked = jax.tree.map(np.asarray, stacked)
            each = (jax.tree.map(operator.itemgetter(i), stacked) for i in range(self.length))
            self.modules, self.stacked = nnx.List([nnx.merge(graphdef, state) for state in each]), None

    def __call__(self, x: Float[Array, "..."], *args: Any) -> Float[Array, "..."]:
        """Applies all modules; each gets the same `args`."""
        for module in self.modules:
            x = module(x, *args)
        if self.stacked is None:
            return x
        graphdef, stacked = nnx.split(self.stacked)

        def apply(x, layer):
            return nnx.merge(graphdef, layer)(x, *args), None

        return jax.lax.scan(jax.checkpoint(apply) if self.remat else apply, x, stacked)[0]


ROWS = 2048
"""Positions that `by_rows` computes at a time on a CPU. Four times ConvNeXt-L's channels are then 6 to 25 MB."""


MOST_PARTS = 32
"""More would take long to compile."""


def by_rows(
    function: Callable[[Float[Array, "N C"]], Float[Array, "N D"]], x: Float[Array, "*batch C"]
) -> Float[Array, "*batch D"]:
    """Applies a function of single positions: on a CPU to some at a time, so that its intermediate values stay in the caches.

    Otherwise they come from new memory, in each run: a block of ConvNeXt-L's first stage takes 1.6 times as long.
    """
    flat = x.reshape(-1, x.shape[-1])
    count = flat.shape[0]
    rows = ceil_div(count, min(ceil_div(count, ROWS), MOST_PARTS))  # of almost equal parts

    def some_at_a_time(x: Float[Array, "N C"]) -> Float[Array, "N D"]:
        # Not slices, whose gradients would be padded to the whole and added.
        return jnp.concatenate([function(part) for part in jnp.split(x, list(range(rows, count, rows)))])

    y = jax.lax.platform_dependent(flat, cpu=some_at_a_time, default=function)
    return y.reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x times the standard normal distribution function of x.

    The gradient recomputes everything from `x`. JAX's own keeps four arrays of that size for it, and writing and reading
    them takes longer: with it, an MLP of dimension 32 takes twice the time in training on a CPU.
    """
    return jax.nn.gelu(x, approximate=False)


def _gelu_forward(x: Float[Array, "*shape"]):
    return gelu(x), x


def _gelu_backward(x: Float[Array, "*shape"], gradient: Float[Array, "*shape"]):
    wide = x.astype(wide_dtype(x))
    distribution = 0.5 + 0.5 * jax.lax.erf(wide * 0.5**0.5)
    density = jnp.exp(-0.5 * jnp.square(wide)) * (2 * np.pi) ** -0.5
    return ((gradient.astype(wide.dtype) * (distribution + wide * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def wide_dtype(x: Float[Array, "..."]) -> np.dtype:
    """Returns the dtype of `x`, but at least float32."""
    return np.promote_types(x.dtype, jnp.float32)


def add_dims(vector: Float[Array, " C"], like: Float[Array, "*batch C"]) -> Float[Array, "*ones C"]:
    """Reshapes a vector to the dtype and rank of `like`."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + vector.shape)


def sine_positions(
    valid_hw: Int[Array, "B 2"], shape: tuple[int, int], stride: int, features: int, dtype: jnp.dtype
) -> Float[Array, "B h w C"]:
    """Returns Mask2Former's normalised sine embedding (position_encoding.py), over the image's own size.

    Each axis has `features / 2` channels, sine and cosine interleaved, y before x. Positions count from 1 and are
    scaled so that the last is 2 pi.
    """
    pairs = features // 4
    # In bfloat16, neighbouring positions would round to the same value.
    wide = np.promote_types(dtype, jnp.float32)
    frequency = 10000.0 ** (-jnp.arange(pairs, dtype=wide) / pairs)

    def axis(length: int, valid: Int[Array, " B"]) -> Float[Array, "B length C_2"]:
        position = jnp.arange(1, length + 1, dtype=wide)[None, :]
        scale = 2 * jnp.pi / ((valid // stride).astype(wide) + 1e-6)
        angle = (position * scale[:, None])[:, :, None] * frequency[None, None, :]
        return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*angle.shape[:2], 2 * pairs).astype(dtype)

    h, w = shape
    y, x = axis(h, valid_hw[:, 0]), axis(w, valid_hw[:, 1])
    batch = valid_hw.shape[0]
    return jnp.concatenate(
        [
            jnp.broadcast_to(y[:, :, None, :], (batch, h, w, 2 * pairs)),
            jnp.broadcast_to(x[:, None, :, :], (batch, h, w, 2 * pairs)),
        ],
        axis=-1,
    )
