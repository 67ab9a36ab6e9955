"""The mesh, and where arrays lie on it: batches over all devices, large parameters over `fsdp`."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

BATCH = PartitionSpec(("data", "fsdp"))
"""Rows of a batch: over every device."""

MIN_SHARDED = 2**14
"""Elements. Smaller parameters are not worth gathering: every device holds them whole."""


def make_mesh(data: int, fsdp: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """`data` copies of the model, each shared by `fsdp` devices; a `data` of -1 takes all devices.

    Raises:
        ValueError: the devices are not enough, or (in several processes) some would be left out.
    """
    devices = jax.devices() if devices is None else list(devices)
    if fsdp < 1 or (data < 1 and data != -1):
        raise ValueError(f"mesh data {data} x fsdp {fsdp}: sides are at least 1 (data may be -1, for all devices)")
    if data == -1:
        if len(devices) % fsdp:
            raise ValueError(f"mesh.fsdp is {fsdp}, which does not divide the {len(devices)} devices; choose a divisor")
        data = len(devices) // fsdp
    count = data * fsdp
    if count > len(devices):
        raise ValueError(
            f"mesh data {data} x fsdp {fsdp} asks for {count} devices, and there are {len(devices)}; ask for fewer"
        )
    if jax.process_count() > 1 and count < len(devices):
        raise ValueError(
            f"mesh data {data} x fsdp {fsdp} leaves {len(devices) - count} of {len(devices)} devices without work, which"
            f" several processes cannot; make the sides multiply to {len(devices)}"
        )
    return Mesh(np.asarray(devices[:count]).reshape(data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ValueError unless every device gets as many images as any other, in every part of an accumulated step."""
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; 1 takes the batch at once, more in so many parts")
    parts = mesh.size * accumulate
    if batch_size < 1 or batch_size % parts:
        accumulated = f" x {accumulate} parts (accumulate)" if accumulate > 1 else ""
        raise ValueError(
            f"batch_size {batch_size} does not divide over {mesh.size} devices{accumulated}; choose a multiple of {parts}"
        )


def parameter_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Over `fsdp` along the longest side that it divides, if the array is large enough."""
    sides = [i for i, side in enumerate(shape) if side % mesh.shape["fsdp"] == 0]
    if math.prod(shape) < MIN_SHARDED or not sides:
        return replicated(mesh)
    longest = max(sides, key=lambda i: shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))


def parameter_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """`parameter_sharding` of every array (or description of one) in a tree, such as an optimiser's state."""
    return jax.tree.map(lambda x: parameter_sharding(mesh, x.shape), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A host array that every process holds whole, onto the mesh; each device takes its own part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def place_parameters(arrays: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    return {name: place(array, parameter_sharding(mesh, array.shape)) for name, array in arrays.items()}


def place_batch(local: PyTree, mesh: Mesh) -> PyTree:
    """The rows that each process holds, as one batch: process after process."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(batch_sharding(mesh), rows), local)
