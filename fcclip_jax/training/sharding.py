"""The mesh, and how arrays are sharded on it: batches over all devices, large parameters over `fsdp`."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

BATCH = PartitionSpec(("data", "fsdp"))
"""Rows of a batch are sharded over every device."""

MIN_SHARDED = 2**14
"""Parameters of fewer elements are replicated: gathering them would cost more than it saves."""


def make_mesh(data: int, fsdp: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of `data` copies of the model, each sharded over `fsdp` devices.

    data: -1 takes all devices.

    Raises:
        ValueError: there are too few devices, or a run of several processes would leave some out.
    """
    devices = jax.devices() if devices is None else list(devices)
    if fsdp < 1 or (data < 1 and data != -1):
        raise ValueError(f"mesh data {data} x fsdp {fsdp}: both must be at least 1 (data may be -1, for all devices)")
    if data == -1:
        if len(devices) % fsdp:
            raise ValueError(f"mesh.fsdp is {fsdp}, which does not divide the {len(devices)} devices; choose a divisor")
        data = len(devices) // fsdp
    count = data * fsdp
    if count > len(devices):
        raise ValueError(
            f"mesh data {data} x fsdp {fsdp} takes {count} devices, and there are {len(devices)}; choose fewer"
        )
    if jax.process_count() > 1 and count < len(devices):
        raise ValueError(
            f"mesh data {data} x fsdp {fsdp} leaves {len(devices) - count} of {len(devices)} devices idle, which a run"
            f" of several processes cannot; make the sides multiply to {len(devices)}"
        )
    return Mesh(np.asarray(devices[:count]).reshape(data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ValueError unless all devices get equally many images, in every part of an accumulated step."""
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; it is the number of parts of a batch, at least 1")
    parts = mesh.size * accumulate
    if batch_size < 1 or batch_size % parts:
        accumulated = f" x {accumulate} parts (accumulate)" if accumulate > 1 else ""
        raise ValueError(
            f"batch_size {batch_size} does not divide over {mesh.size} devices{accumulated}; choose a multiple of {parts}"
        )


def parameter_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Shards a large array over `fsdp`, along the longest axis that `fsdp` divides; others are replicated."""
    axes = [i for i, side in enumerate(shape) if side % mesh.shape["fsdp"] == 0]
    if math.prod(shape) < MIN_SHARDED or not axes:
        return replicated(mesh)
    longest = max(axes, key=lambda i: shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))


def parameter_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Returns `parameter_sharding` of every array or ShapeDtypeStruct in a tree, such as an optimiser's state."""
    return jax.tree.map(lambda x: parameter_sharding(mesh, x.shape), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts a host array that every process holds whole onto the mesh; each device takes its own part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def place_parameters(arrays: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    return {name: place(array, parameter_sharding(mesh, array.shape)) for name, array in arrays.items()}


def place_batch(local: PyTree, mesh: Mesh) -> PyTree:
    """Joins the rows that each process holds to one batch on the mesh, in the order of the processes."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(batch_sharding(mesh), rows), local)
