"""The entry point of this package: checks, choice of the implementation, gradients, sharding."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels import gpu, reference, tpu, xla
from pallas_kernels.lowering import note_platform

Array = jax.Array | np.ndarray

IMPLEMENTATIONS = ("reference", "xla", "tpu", "gpu")
PRECISIONS = ("float32", "bfloat16")
PLATFORMS = {"tpu": "tpu", "gpu": "cuda"}
"""The platform that each kernel runs on, by JAX's name for it. The other implementations run everywhere."""


class Options(NamedTuple):
    """The static arguments of a call."""

    shapes: tuple[tuple[int, int], ...]
    implementation: str | None
    precision: str | None
    deterministic: bool


def ms_deform_attn(
    value: Array,
    locations: Array,
    weights: Array,
    shapes: Sequence[tuple[int, int]],
    *,
    implementation: str | None = None,
    precision: str | None = None,
    deterministic: bool = False,
) -> jax.Array:
    """Multi-scale deformable attention's sampling (Deformable DETR, equation 3): a weighted sum of bilinear samples.

    Differentiable in its three arrays (reverse mode). Where bilinear sampling has a kink, the derivative is PyTorch's:
    that of the interval that begins at the point. Sums are taken in float32 or wider. On a mesh of devices each works
    on its own share of the batch, over as many axes as divide it, and nothing is gathered. Pass check_vma=False to a
    `jax.shard_map` around it: JAX cannot check a Pallas kernel.

    Args:
        value: [B, N, M, D], the feature maps of all levels flattened row by row and concatenated. The other arrays have
            its dtype, or are both float32 where it is bfloat16, which is too coarse for locations.
        locations: [B, Q, M, L, P, 2], sampling points as (x, y), where [0, 1] spans a level from edge to edge
            (`grid_sample` with align_corners=False); points outside read zero.
        weights: [B, Q, M, L, P].
        shapes: the (height, width) of each of the L levels.
        implementation: one of `IMPLEMENTATIONS`. By default it is chosen when the program is lowered for a platform:
            that platform's kernel if it can run these arrays, else "xla"; the choice is logged once. `jax.export`
            takes one platform at a time: JAX cannot lower a Pallas kernel for several.
        precision: precision of the TPU kernel's matrix products, one of `PRECISIONS`: "float32" is exact to rounding,
            "bfloat16" is several times faster. By default it is value's dtype.
        deterministic: sums the "gpu" kernel's gradient of `value` in a fixed order. All else is deterministic
            without it.

    Returns:
        [B, Q, M, D], in the dtype of `value`.

    Raises:
        ValueError: ranks, sizes or dtypes do not fit together, a name is unknown, or the named implementation cannot
            run: raised at the call for the arrays, when the program is lowered for the platform.
    """
    try:
        levels = tuple((int(h), int(w)) for h, w in shapes)
    except (TypeError, ValueError):
        raise ValueError(f"level shapes are {shapes!r}; give the (height, width) of every level") from None
    options = Options(levels, implementation, precision, deterministic)
    _check(value, locations, weights, options)
    arrays = jnp.asarray(value), jnp.asarray(locations), jnp.asarray(weights)
    reason = _unsupported(implementation, arrays[0], arrays[1], options.shapes)
    if reason:
        raise ValueError(
            f"implementation {implementation!r} cannot run {_describe(*arrays, options.shapes)}: {reason};"
            " choose 'xla', or None"
        )
    return _sample(*arrays, options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sample(value: Array, locations: Array, weights: Array, options: Options) -> jax.Array:
    return _on_each_shard(_forward, options, value, locations, weights)


def _sample_forward(value: Array, locations: Array, weights: Array, options: Options):
    return _sample(value, locations, weights, options), (value, locations, weights)


def _sample_backward(options: Options, inputs: tuple[Array, ...], grad: Array):
    return _on_each_shard(_backward, options, *inputs, grad)


_sample.defvjp(_sample_forward, _sample_backward)


def _on_each_shard(function: Callable, options: Options, *arrays: Array):
    """Applies `function` on each device to its part of the batch. JAX cannot partition a Pallas kernel itself."""
    run = functools.partial(function, options=options)
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(array).sharding.mesh for array in arrays)]
    mesh = next((mesh for mesh in meshes if not mesh.empty), meshes[0])
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    free = [name for name in mesh.axis_names if kinds[name] is not AxisType.Manual]
    # The caller chooses how explicit axes share the batch; the choice is part of the array's type.
    (batch_spec, *_) = jax.typeof(arrays[0]).sharding.spec
    chosen = batch_spec if isinstance(batch_spec, tuple) else (batch_spec,)
    shared, parts = [], 1
    for name in free:
        divides = arrays[0].shape[0] % (parts * mesh.shape[name]) == 0
        if (name in chosen) if kinds[name] is AxisType.Explicit else divides:
            shared.append(name)
            parts *= mesh.shape[name]
    if math.prod(mesh.shape[name] for name in free) == 1:
        return run(*arrays)
    spec = PartitionSpec(tuple(shared))
    # The kernels' results vary over the mesh as their inputs do; JAX cannot check that for a pallas_call.
    sharded = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=set(free), check_vma=False)
    return sharded(*arrays)


@functools.partial(jax.jit, static_argnames="options", inline=True)
def _forward(*arrays: jax.Array, options: Options) -> jax.Array:
    shapes, precision = options.shapes, options.precision
    return _choose(
        options,
        arrays,
        reference=functools.partial(reference.ms_deform_attn, shapes=shapes),
        xla=functools.partial(xla.forward, shapes=shapes),
        tpu=functools.partial(tpu.forward, shapes=shapes, precision=precision),
        gpu=functools.partial(gpu.forward, shapes=shapes),
    )


@functools.partial(jax.jit, static_argnames="options", inline=True)
def _backward(*arrays: jax.Array, options: Options) -> tuple[jax.Array, jax.Array, jax.Array]:
    shapes, precision = options.shapes, options.precision
    return _choose(
        options,
        arrays,
        reference=functools.partial(reference.backward, shapes=shapes),
        xla=functools.partial(xla.backward, shapes=shapes),
        tpu=functools.partial(tpu.backward, shapes=shapes, precision=precision),
        gpu=functools.partial(gpu.backward, shapes=shapes, deterministic=options.deterministic),
    )


def _choose(options: Options, arrays: tuple[jax.Array, ...], **implementations: Callable):
    """Runs the named implementation, or one per platform, of which lowering keeps the one for its platform."""

    def noted(name: str, remark: str = "") -> Callable:
        def run(value: jax.Array, *others: jax.Array):
            only = PLATFORMS.get(name) if options.implementation else None
            return implementations[name](note_platform(value, name=name, only=only, remark=remark), *others)

        return run

    if options.implementation is not None:
        return noted(options.implementation)(*arrays)
    branches = {}
    for name, platform in PLATFORMS.items():
        reason = _unsupported(name, arrays[0], arrays[1], options.shapes)
        branches[platform] = noted("xla", f", since {reason}") if reason else noted(name)
    return jax.lax.platform_dependent(*arrays, **branches, default=noted("xla"))


def _unsupported(
    name: str | None, value: jax.Array, locations: jax.Array, shapes: tuple[tuple[int, int], ...]
) -> str | None:
    if name not in PLATFORMS:
        return None
    return {"tpu": tpu, "gpu": gpu}[name].unsupported(value, locations, shapes)


def _describe(value: Array, locations: Array, weights: Array, shapes: tuple[tuple[int, int], ...]) -> str:
    return f"value {value.shape}, locations {locations.shape}, weights {weights.shape}, level shapes {shapes}"


def _check(value: Array, locations: Array, weights: Array, options: Options) -> None:
    shapes = options.shapes
    given = _describe(value, locations, weights, shapes)
    if value.ndim != 4 or locations.ndim != 6 or weights.ndim != 5:
        raise ValueError(f"expected value [B,N,M,D], locations [B,Q,M,L,P,2] and weights [B,Q,M,L,P], got {given}")
    if not shapes or min(min(shape) for shape in shapes) < 1:
        raise ValueError(f"every level needs at least one row and one column, got {given}")
    if sum(h * w for h, w in shapes) != value.shape[1]:
        raise ValueError(f"the level shapes do not add up to the {value.shape[1]} rows of value: {given}")
    batch, _, heads, _ = value.shape
    expected = (batch, weights.shape[1], heads, len(shapes), weights.shape[4])
    if weights.shape != expected or locations.shape != (*expected, 2):
        raise ValueError(f"batch, queries, heads, levels or points differ: {given}")
    dtypes = f"value {value.dtype}, locations {locations.dtype}, weights {weights.dtype}"
    samples = {locations.dtype, weights.dtype}
    if samples != {value.dtype} and not (value.dtype == "bfloat16" and samples == {jnp.dtype("float32")}):
        raise ValueError(f"dtypes differ: {dtypes}; cast locations and weights to value's ({given})")
    if value.dtype not in ("float32", "bfloat16", "float64"):
        raise ValueError(f"dtypes are {dtypes}; cast them to float32 or bfloat16 ({given})")
    if options.implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"unknown implementation {options.implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}, or None"
        )
    if options.precision not in (None, *PRECISIONS):
        raise ValueError(f"unknown precision {options.precision!r}; choose one of {', '.join(PRECISIONS)}, or None")
