"""Applies a kernel on each device of a mesh to its part of the batch. JAX cannot partition a Pallas kernel itself."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec

Array = jax.Array | np.ndarray


def on_each_shard(function: Callable[..., Any], batched: Sequence[Array], whole: Sequence[Array] = ()) -> Any:
    """Returns `function(*batched, *whole)`, computed on each device for as many axes of the mesh as divide the batch.

    batched: arrays whose first axis is the batch, as it is in all results.
    whole: arrays that each device needs all of, such as parameters.
    """
    arrays = (*batched, *whole)
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(array).sharding.mesh for array in arrays)]
    mesh = next((mesh for mesh in meshes if not mesh.empty), meshes[0])
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    free = [name for name in mesh.axis_names if kinds[name] is not AxisType.Manual]
    # The caller chooses how explicit axes share the batch; the choice is part of the array's type.
    (batch_spec, *_) = jax.typeof(batched[0]).sharding.spec
    chosen = batch_spec if isinstance(batch_spec, tuple) else (batch_spec,)
    shared, parts = [], 1
    for name in free:
        divides = batched[0].shape[0] % (parts * mesh.shape[name]) == 0
        if (name in chosen) if kinds[name] is AxisType.Explicit else divides:
            shared.append(name)
            parts *= mesh.shape[name]
    if math.prod(mesh.shape[name] for name in free) == 1:
        return function(*arrays)
    part, all_of_it = PartitionSpec(tuple(shared)), PartitionSpec()
    specs = (part,) * len(batched) + (all_of_it,) * len(whole)
    # The kernels' results vary over the mesh as their inputs do; JAX cannot check that for a pallas_call.
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=part, axis_names=set(free), check_vma=False)(
        *arrays
    )
