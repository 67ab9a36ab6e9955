"""Times a training step and measures its memory: `python -m fcclip_jax.training.timing --crop 512 --torch`.

The step is training's own, in float32 on the CPU: a frozen ConvNeXt-L under a new head of the paper's sizes (250 queries,
9 layers, 12,544 points); losses of all outputs, gradient, clip and AdamW. --torch adds a step of Mask2Former in PyTorch
(transformers' code): a frozen ConvNeXt of the same sizes, with the same numbers of queries, layers, points, classes and
segments. FC-CLIP does a little more: it pools features under every mask and compares them with embeddings.

Each side is a separate process, for its memory. The sides take turns, step by step, so that other load on the machine
affects both. Seconds are medians. The first step, which compiles, is reported separately; after it, each side returns its
free memory to the system. Memory is the peak of the later steps.
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

# JAX and PyTorch are imported where they are used, so that each side's memory holds only its own library.
from fcclip_jax import command_line
from fcclip_jax.models.descriptions import CLIP_MODELS, ModelDescription
from fcclip_jax.process_memory import peak_memory, reset_peak_memory, return_free_memory

MODEL = "convnext_large_d_320"
CLASSES = 133
OURS, TORCH = "FC-CLIP, JAX", "Mask2Former, PyTorch"
GIB = 2**30


class Case(NamedTuple):
    """The task of both sides."""

    description: ModelDescription
    crop: int
    batch: int
    segments: int
    points: int = 12_544
    device: Literal["cpu", "gpu"] = "cpu"
    """The device to train on: JAX's default one, which must be of this kind, and PyTorch's."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """JAX: the dtype that `StepSettings.compute_dtype` gives. PyTorch: float32, or float32 with bfloat16 autocast."""
    remat: bool = False
    """JAX only: `StepSettings.remat`."""
    matcher: Literal["optax", "scipy"] = "optax"
    """JAX only: the matcher on the device or on the host. PyTorch's is SciPy's, on the host."""


class Side(NamedTuple):
    """One implementation, ready to train."""

    trainable: int
    """Trainable parameters."""
    frozen: int
    step: Callable[[], float]
    """Makes a step and returns its loss."""
    peak_memory: Callable[[], int]
    """Returns the most bytes held so far: by the process on a CPU, by the library's arrays on a GPU."""


def ours(case: Case) -> Side:
    """Builds FC-CLIP's step in JAX."""
    import jax

    from fcclip_jax.models.building import named_variables
    from fcclip_jax.models.random_weights import random_model
    from fcclip_jax.structs import Batch, Targets, TextClassifier
    from fcclip_jax.training import sharding
    from fcclip_jax.training.losses.criterion import LossSettings
    from fcclip_jax.training.parameters import is_trainable
    from fcclip_jax.training.starting_model import initial_head
    from fcclip_jax.training.step import StepSettings, frozen_dtype, initial_state, make_train_step, skeleton

    losses = LossSettings(num_points=case.points, matcher=case.matcher)
    settings = StepSettings(losses, compute_dtype=case.dtype, remat=case.remat)
    mesh = sharding.make_mesh(1, 1, jax.devices(case.device))
    model = skeleton(case.description, settings)
    drawn = named_variables(random_model(case.description))
    names = [name for name in named_variables(model) if not is_trainable(name, settings.train_trunk)]
    values = {name: np.asarray(drawn[name][...], frozen_dtype(name, settings)) for name in names}
    frozen = sharding.place_parameters(values, mesh)
    del drawn
    state = initial_state(initial_head(case.description, seed=0), settings, mesh)

    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((CLASSES, case.description.clip.image.embed_dim), np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    text = TextClassifier(embeddings, np.arange(CLASSES, dtype=np.int32), np.ones(CLASSES, bool), np.int32(CLASSES))
    labels = np.full((case.batch, 128), -1, np.int32)
    labels[:, : case.segments] = rng.integers(0, CLASSES, (case.batch, case.segments))
    images = rng.integers(0, 256, (case.batch, case.crop, case.crop, 3), np.uint8)
    batch = Batch(images, Targets(segment_map(case), labels), np.arange(case.batch, dtype=np.int32))
    batch, text = sharding.place_batch(batch, mesh), jax.device_put(text, sharding.replicated(mesh))
    train_step = make_train_step(model, settings, mesh)

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = train_step(state, frozen, text, batch)
        return float(jax.block_until_ready((metrics.loss, state))[0])

    def device_peak() -> int:
        return mesh.devices.item().memory_stats()["peak_bytes_in_use"]

    trainable, kept = (sum(x.size for x in arrays.values()) for arrays in (state.parameters, frozen))
    return Side(trainable, kept, step, peak_memory if case.device == "cpu" else device_peak)


def theirs(case: Case) -> Side:
    """Builds Mask2Former's step in PyTorch."""
    import torch
    from transformers import ConvNextConfig, Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    torch.manual_seed(0)
    trunk, head = case.description.clip.image, case.description.head
    config = Mask2FormerConfig(
        backbone_config=ConvNextConfig(
            depths=list(trunk.depths), hidden_sizes=list(trunk.dims), out_features=[f"stage{i}" for i in (1, 2, 3, 4)]
        ),
        num_labels=CLASSES,
        num_queries=head.num_queries,
        feature_size=head.hidden_dim,
        mask_feature_size=head.mask_dim,
        hidden_dim=head.hidden_dim,
        num_attention_heads=head.heads,
        encoder_layers=head.encoder_layers,
        encoder_feedforward_dim=head.encoder_ffn_dim,
        decoder_layers=head.decoder_layers + 1,  # it counts the outputs
        dim_feedforward=head.decoder_ffn_dim,
        train_num_points=case.points,
    )
    device = torch.device("cpu" if case.device == "cpu" else "cuda")
    # JAX multiplies float32 arrays on a GPU as TF32 by default too; on a CPU this changes nothing.
    torch.set_float32_matmul_precision("high")
    model = Mask2FormerForUniversalSegmentation(config).train().to(device)
    # The encoder needs no gradient, so PyTorch keeps none of its activations for the backward pass.
    encoder = model.model.pixel_level_module.encoder.requires_grad_(False).eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05)
    images = torch.randn(case.batch, 3, case.crop, case.crop, device=device)
    segment_maps = torch.from_numpy(segment_map(case)).to(device)
    masks = [torch.stack([row == g for g in range(case.segments)]).float() for row in segment_maps]
    labels = [torch.randint(CLASSES, (case.segments,), device=device) for _ in range(case.batch)]

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=case.dtype == "bfloat16"):
            loss = model(pixel_values=images, mask_labels=masks, class_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.01)
        optimizer.step()
        return loss.item()

    sizes = (sum(x.numel() for x in parameters) for parameters in (trained, encoder.parameters()))
    return Side(*sizes, step, peak_memory if case.device == "cpu" else torch.cuda.max_memory_allocated)


def segment_map(case: Case) -> UInt8[np.ndarray, "B H W"]:
    """Returns maps of random blocks of 32 pixels, each of which belongs to a segment."""
    blocks = np.random.default_rng(0).integers(0, case.segments, (case.batch, case.crop // 32, case.crop // 32))
    return blocks.astype(np.uint8).repeat(32, axis=1).repeat(32, axis=2)


SIDES = {OURS: ours, TORCH: theirs}


def serve(connection: Connection, name: str, case: Case) -> None:
    """Runs one side's process: makes a step for every True received, and sends its seconds, peak bytes and loss."""
    side = SIDES[name](case)
    connection.send((side.trainable, side.frozen))
    first = True
    while connection.recv():  # False at the end
        begin = time.perf_counter()
        loss = side.step()
        connection.send((time.perf_counter() - begin, side.peak_memory(), loss))
        if first:
            return_free_memory()  # as training does
            first = False
        reset_peak_memory()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fcclip_jax.training.timing", description=__doc__.split("\n")[0])
    convnexts = [name for name, clip in CLIP_MODELS.items() if clip.image.family == "convnext"]
    parser.add_argument(
        "--clip", choices=convnexts, default=MODEL, help="the CLIP whose trunk to use (default: %(default)s)"
    )
    parser.add_argument("--crop", type=int, default=512, help="pixels, a multiple of 32 (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images (default: %(default)s)")
    parser.add_argument("--segments", type=int, default=12, help="segments in each image (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="steps to time (default: %(default)s)")
    parser.add_argument("--torch", action="store_true", help="time PyTorch's Mask2Former too")
    args = parser.parse_args(argv)
    if args.crop < 32 or args.crop % 32:
        parser.error(f"--crop is {args.crop}, not a multiple of 32")
    if min(args.batch, args.repeats) < 1 or not 1 <= args.segments <= 128:
        parser.error("--batch and --repeats are at least 1, --segments from 1 to 128")
    if args.torch and not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        parser.error("--torch needs torch and transformers: pip install torch transformers")
    case = Case(ModelDescription(clip=CLIP_MODELS[args.clip]), args.crop, args.batch, args.segments)
    print(f"{args.batch} x {args.crop}x{args.crop}, {args.segments} segments, float32, {args.clip}", flush=True)
    compare(case, list(SIDES) if args.torch else [OURS], args.repeats)
    return command_line.DONE


def compare(case: Case, names: Sequence[str], repeats: int) -> None:
    """Times the named sides in turns. Prints a line for each, and the ratio of the first to the second."""
    # For the processes: with a cache, the first step would not compile.
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    context = multiprocessing.get_context("spawn")
    connections = {}
    for name in names:
        connections[name], other = context.Pipe()
        context.Process(target=serve, args=(other, name, case), daemon=True).start()
        other.close()  # the process holds its own copy: reading here ends when the process does
    sizes = {name: connection.recv() for name, connection in connections.items()}
    found: dict[str, list[tuple[float, int, float]]] = {name: [] for name in names}
    for _ in range(1 + repeats):
        for name, connection in connections.items():
            connection.send(True)
            found[name].append(connection.recv())
    for connection in connections.values():
        connection.send(False)
    seconds = {name: statistics.median(step[0] for step in steps[1:]) for name, steps in found.items()}
    memory = {name: max(step[1] for step in steps[1:]) for name, steps in found.items()}
    for name, steps in found.items():
        trainable, frozen = sizes[name]
        print(
            f"{name:20} {seconds[name]:7.2f} s a step, {memory[name] / GIB:6.2f} GiB; first step {steps[0][0]:.1f} s,"
            f" {steps[0][1] / GIB:.2f} GiB, loss {steps[0][2]:.0f}; {trainable / 1e6:.1f} M trainable, {frozen / 1e6:.1f} M frozen"
        )
    if len(found) > 1:
        (our_seconds, their_seconds), (our_memory, their_memory) = seconds.values(), memory.values()
        print(
            f"ours / theirs: {our_seconds / their_seconds:.2f} of the time, {our_memory / their_memory:.2f} of the memory"
        )


if __name__ == "__main__":
    sys.exit(main())
