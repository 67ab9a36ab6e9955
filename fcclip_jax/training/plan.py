"""Memory and communication of a training step on a TPU pod, without the pod.

The real step is compiled by the real TPU compiler (libtpu, from pip). Nothing runs: the compiler reports how much memory
each chip's program needs, and the program's text shows which data the chips exchange.
"""

import math
import re
import time
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fcclip_jax.command_line import DONE, INCOMPLETE
from fcclip_jax.data.datasets import CUSTOM, DATASETS, open_dataset
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import HeadDescription, ModelDescription
from fcclip_jax.structs import Batch, Targets, TextClassifier
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.training import sharding
from fcclip_jax.training.config import step_settings
from fcclip_jax.training.optim import optimizer
from fcclip_jax.training.parameters import is_trainable
from fcclip_jax.training.starting_model import model_description
from fcclip_jax.training.step import StepSettings, TrainState, frozen_dtype, make_train_step, skeleton
from fcclip_jax.world import words
from fcclip_jax.world.panoptic import WORLD
from pallas_kernels.compile_tpu import devices

GIB = 2**30
HBM = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32, "TPU7x": 96}
"""GiB of memory of each of JAX's devices: a chip, or half a v7x chip."""

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_LISTS_OPERANDS = ("all-gather", "collective-permute")
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
}


class StepArguments(NamedTuple):
    """A step's arguments, in its order; the leaves are ShapeDtypeStructs with shardings."""

    state: TrainState
    frozen: dict[str, jax.ShapeDtypeStruct]
    text: TextClassifier
    batch: Batch


class Plan(NamedTuple):
    """Needs of one device. Sizes are in bytes."""

    arguments: int
    """Parameters, optimiser state, frozen weights and the device's share of the batch."""
    temporaries: int
    peak: int
    """Arguments, temporaries, and results that do not reuse an argument's memory."""
    capacity: int | None
    """None for a device that is not in `HBM`."""
    collectives: dict[str, tuple[int, int]]
    """The number that a step makes of each kind, and the bytes that they produce."""
    counted: bool
    """False if the collectives' counts are incomplete: XLA does not always give a loop's trip count."""
    kernels: int
    """Calls of Pallas kernels in the program."""
    compile_seconds: float

    @property
    def fits(self) -> bool:
        return self.capacity is None or self.peak <= self.capacity


def print_plan(config: ConfigDict, topology: str) -> int:
    """Prints the plan. Returns the exit code: INCOMPLETE if the step does not fit into memory.

    Raises:
        ValueError: libtpu is not installed or has no such topology, or the configuration does not suit it.
    """
    try:
        chips = devices(topology)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, chips)
    sharding.check_batch_size(config.batch_size, config.accumulate, mesh)
    settings = step_settings(config)
    description = model_description(config.model.clip, HeadDescription(**config.model.head))
    arguments = abstract_arguments(config, description, settings, mesh)
    print(
        f"{topology}: {mesh.size} x {chips[0].device_kind}, mesh {mesh.shape['data']} data x {mesh.shape['fsdp']} fsdp,"
        f" {config.batch_size // mesh.size} images of {config.data.crop} pixels a device",
        flush=True,
    )
    for label, arrays in (("trainable", arguments.state.parameters), ("frozen", arguments.frozen)):
        print(f"{label:10} {_count(arrays):>14,} parameters, {_bytes_on_device(arrays) / GIB:.3f} GiB on each device")
    plan = compile_plan(description, settings, mesh, arguments)
    print(
        f"arguments  {plan.arguments / GIB:.2f} GiB, temporaries {plan.temporaries / GIB:.2f} GiB, peak {plan.peak / GIB:.2f} GiB"
        + (f" of {plan.capacity / GIB:.0f} GiB" if plan.capacity else "")
    )
    least = "" if plan.counted else "at least "
    for name, (count, size) in plan.collectives.items():
        print(f"{name:20} {least}{count:6} a step, {size / 2**20:10.1f} MiB on each device")
    print(f"compiled in {plan.compile_seconds:.0f} s, with {plan.kernels} calls of Pallas kernels")
    if not plan.fits:
        print("it does not fit: raise mesh.fsdp or accumulate, set remat, or choose a smaller batch or crop")
    return DONE if plan.fits else INCOMPLETE


def abstract_arguments(
    config: ConfigDict, description: ModelDescription, settings: StepSettings, mesh: Mesh
) -> StepArguments:
    """Returns a step's arguments without values: state, frozen parameters, text classifier, batch."""
    variables = named_variables(skeleton(description, settings))

    def parameter(shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.parameter_sharding(mesh, shape))

    def row(shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=sharding.batch_sharding(mesh))

    def everywhere(shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated(mesh))

    trained = {n: parameter(v.shape, np.float32) for n, v in variables.items() if is_trainable(n, settings.train_trunk)}
    frozen = {n: parameter(v.shape, frozen_dtype(n, settings)) for n, v in variables.items() if n not in trained}
    optimizer_state = jax.eval_shape(optimizer(trained, settings.optim).init, trained)
    state = TrainState(
        step=everywhere((), np.int32),
        parameters=trained,
        optimizer=jax.tree.map(lambda x: parameter(x.shape, x.dtype), optimizer_state),
        average=None if settings.average is None else trained,
    )
    vocabulary = _vocabulary(config)
    rows, classes = len(vocabulary.groups), len(vocabulary.classes)
    text = TextClassifier(
        embeddings=everywhere((rows, description.clip.image.embed_dim), np.float32),
        groups=everywhere((rows,), np.int32),
        seen=everywhere((classes,), np.bool_),
        num_classes=everywhere((), np.int32),
    )
    crop = (config.data.crop, config.data.crop)
    targets = Targets(row(crop, np.uint8), row((config.data.max_segments,), np.int32))
    return StepArguments(state, frozen, text, Batch(row((*crop, 3), np.uint8), targets, row((), np.int32)))


def compile_plan(description: ModelDescription, settings: StepSettings, mesh: Mesh, arguments: StepArguments) -> Plan:
    """Compiles the step for the mesh's devices."""
    step = make_train_step(skeleton(description, settings), settings, mesh)
    with jax.set_mesh(mesh):
        lowered = step.lower(*arguments)
    begin = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - begin
    memory, text = compiled.memory_analysis(), compiled.as_text()
    found, counted = collectives(text)
    arguments_size, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    kind = mesh.devices.flat[0].device_kind
    return Plan(
        arguments=arguments_size,
        temporaries=temporaries,
        peak=arguments_size + temporaries + results,
        capacity=HBM[kind] * GIB if kind in HBM else None,
        collectives=found,
        counted=counted,
        kernels=text.count('custom_call_target="tpu_custom_call"'),
        compile_seconds=seconds,
    )


def collectives(text: str) -> tuple[dict[str, tuple[int, int]], bool]:
    """Counts the collectives of a program in XLA's text form, loops included, and the bytes that they produce.

    Returns the count and bytes of each kind, and whether they are complete: a loop without a readable trip count is
    counted once.
    """
    own: dict[str, list[tuple[str, int]]] = {}
    calls: dict[str, list[tuple[str, int | None]]] = {}
    bounds = _loop_bounds(text)
    entry = name = ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*-> .*\{$", line):
            name = header[2]
            own[name], calls[name] = [], []
            entry = name if header[1] else entry
        elif found := re.match(rf"\s+(?:ROOT )?%?[\w.\-]+ = (.+?) ({'|'.join(_COLLECTIVES)})(-start)?\(", line):
            own[name].append((found[2], _size(found[1], found[2] in _LISTS_OPERANDS and bool(found[3]))))
        elif name:
            trips = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', line)
            condition = re.search(r"condition=%?([\w.\-]+)", line)
            times = int(trips[1]) if trips else bounds.get(condition[1]) if condition else 1
            for callee in re.findall(r"(?:body|to_apply|calls|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)", line):
                calls[name] += [(part.lstrip("%"), times) for part in callee.split(", ")]
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()

    def visit(computation: str, times: int) -> bool:
        """Returns whether everything is counted."""
        for kind, size in own.get(computation, ()):
            counts[kind] += times
            sizes[kind] += times * size
        whole = True
        for callee, trips in calls.get(computation, ()):
            before = counts.total()
            whole &= visit(callee, times * (trips or 1))
            whole &= trips is not None or counts.total() == before
        return whole

    counted = visit(entry, 1)
    return {kind: (counts[kind], sizes[kind]) for kind in _COLLECTIVES if counts[kind]}, counted


def _loop_bounds(text: str) -> dict[str, int]:
    """Returns N for each computation that tests whether a loop's counter is less than a constant N.

    For TPUs, XLA gives no trip counts.
    """
    bounds = {}
    for name, body in re.findall(r"^%?([\w.\-]+) .*-> pred\[\].*\{\n((?:[^}].*\n)*)\}", text, re.MULTILINE):
        constants = re.findall(r" constant\((\d+)\)", body)
        if len(constants) == 1 and "direction=LT" in body:
            bounds[name] = int(constants[0])
    return bounds


def _size(shapes: str, started: bool) -> int:
    """Returns the bytes of a result. An asynchronous all-gather's or permutation's start lists its operands first."""
    sizes = [
        _BYTES[dtype] * math.prod(int(side) for side in sides.split(",") if side)
        for dtype, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
        if dtype in _BYTES and sides
    ]
    return sum(sizes[len(sizes) // 2 :]) if started and len(sizes) > 1 else sum(sizes)


def _vocabulary(config: ConfigDict) -> Vocabulary:
    if config.data.dataset == CUSTOM:
        return open_dataset(CUSTOM, config.data.root, "train", **config.data.train).vocabulary
    if config.data.dataset == WORLD:
        return words.vocabulary(seen_only=True)
    if config.data.dataset not in DATASETS:
        open_dataset(config.data.dataset)
    return Vocabulary.load(DATASETS[config.data.dataset]["train"].vocabulary)


def _count(arrays: dict[str, jax.ShapeDtypeStruct]) -> int:
    return sum(math.prod(x.shape) for x in arrays.values())


def _bytes_on_device(arrays: dict[str, jax.ShapeDtypeStruct]) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize for x in arrays.values())
