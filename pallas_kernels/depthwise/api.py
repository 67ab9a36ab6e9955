"""The entry point of the operator: checks, choice of the implementation, gradients."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.depthwise import convolution, gpu, reference
from pallas_kernels.lowering import note_platform
from pallas_kernels.sharding import on_each_shard

Array = jax.Array | np.ndarray

IMPLEMENTATIONS = ("reference", "convolution", "gpu")
PLATFORMS = {"gpu": "cuda"}
"""The platform that a kernel runs on, by JAX's name for it. The other implementations run everywhere."""


class Options(NamedTuple):
    """The static arguments of a call."""

    eps: float
    implementation: str


def depthwise_norm(
    x: Array,
    valid_hw: Array,
    weight: Array,
    bias: Array,
    scale: Array,
    offset: Array,
    *,
    eps: float,
    implementation: str = "convolution",
) -> jax.Array:
    """Convolves each channel with its own odd kernel, zero-padded to the same size, and normalises over channels.

    This is the beginning of ConvNeXt's block. Sums and statistics are taken in float32, except that the dtype of the
    "convolution" is the arrays'. Differentiable in all arrays but `valid_hw` (reverse mode); every implementation has
    the gradients of "convolution". On a mesh of devices each works on its own share of the batch, as in
    `ms_deform_attn`.

    Args:
        x: [B, h, w, C], float32 or bfloat16.
        valid_hw: [B, 2], the cells of each image's own height and width; cells beyond them read zero. Results there
            are arbitrary.
        weight: [k, k, C]; bias, scale, offset: [C], all in the dtype of `x`.
        eps: added to the variance.
        implementation: one of `IMPLEMENTATIONS`.

    Returns:
        [B, h, w, C], in the dtype of `x`.

    Raises:
        ValueError: ranks, sizes or dtypes do not fit together, the name is unknown, or the named implementation
            cannot run: raised at the call for the arrays, when the program is lowered for the platform.
    """
    arrays = x, valid_hw, weight, bias, scale, offset
    _check(*arrays)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}")
    x, *others = map(jnp.asarray, arrays)
    reason = gpu.unsupported(x) if implementation == "gpu" else None
    if reason:
        raise ValueError(f"implementation 'gpu' cannot run {_describe(*arrays)}: {reason}; choose 'convolution'")
    return _run(x, *others, Options(eps, implementation))


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _run(x, valid_hw, weight, bias, scale, offset, options: Options) -> jax.Array:
    run = functools.partial(_implementation, options=options)
    return on_each_shard(run, (x, valid_hw), (weight, bias, scale, offset))


@functools.partial(jax.jit, static_argnames="options", inline=True)
def _implementation(x: jax.Array, *others: jax.Array, options: Options) -> jax.Array:
    name = options.implementation
    function = {
        "reference": reference.depthwise_norm,
        "convolution": convolution.depthwise_norm,
        "gpu": gpu.depthwise_norm,
    }[name]
    x = note_platform(x, operator="depthwise_norm", name=name, only=PLATFORMS.get(name), remark="")
    return function(x, *others, eps=options.eps)


def _run_forward(x, valid_hw, weight, bias, scale, offset, options: Options):
    arrays = x, valid_hw, weight, bias, scale, offset
    return _run(*arrays, options), arrays


def _run_backward(options: Options, arrays, grad: jax.Array):
    x, valid_hw, *parameters = arrays

    def forward(x, *parameters):
        return convolution.depthwise_norm(x, valid_hw, *parameters, eps=options.eps)

    d_x, *d_parameters = jax.vjp(forward, x, *parameters)[1](grad)
    return d_x, None, *d_parameters


_run.defvjp(_run_forward, _run_backward)


def _describe(x: Array, valid_hw: Array, weight: Array, bias: Array, scale: Array, offset: Array) -> str:
    others = f"bias {bias.shape}, scale {scale.shape}, offset {offset.shape}"
    return f"x {x.shape}, valid_hw {valid_hw.shape}, weight {weight.shape}, {others}"


def _check(x: Array, valid_hw: Array, weight: Array, bias: Array, scale: Array, offset: Array) -> None:
    given = _describe(x, valid_hw, weight, bias, scale, offset)
    if x.ndim != 4 or weight.ndim != 3:
        raise ValueError(f"expected x [B,h,w,C] and weight [k,k,C], got {given}")
    size, channels = weight.shape[0], x.shape[-1]
    if weight.shape != (size, size, channels) or size % 2 == 0:
        raise ValueError(f"the kernel must be square and odd, with the channels of x: {given}")
    if any(values.shape != (channels,) for values in (bias, scale, offset)) or valid_hw.shape != (x.shape[0], 2):
        raise ValueError(f"batch or channels differ: {given}")
    dtypes = {
        name: str(values.dtype)
        for name, values in zip(
            ("x", "weight", "bias", "scale", "offset"), (x, weight, bias, scale, offset), strict=True
        )
    }
    if len(set(dtypes.values())) > 1:
        described = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise ValueError(f"dtypes differ: {described}; cast them to one ({given})")
    if not np.issubdtype(valid_hw.dtype, np.integer):
        raise ValueError(f"valid_hw is {valid_hw.dtype}; give whole numbers ({given})")
