"""Seconds per image, by stage: `python -m fcclip_jax.inference.timing --size 512x512 --size 800x1067 --torch`.

Runs FC-CLIP with ConvNeXt-L, random weights, 250 queries and 150 classes whose text embeddings are ready, on one image of
each size, and makes panoptic, semantic and instance results at that size. The precision is `Segmenter`'s: the device's
default, or --precision. Prints, for each size,

    trunk, pixel decoder, mask decoder (masks and class probabilities), post-processing:
                    each as a separate program with its inputs ready;
    whole program:  from pixels to maps in one program, as `Segmenter` runs it; it may differ from the stages' sum;
    torch trunk:    with --torch, the image trunk alone in PyTorch (OpenCLIP's convnext_large_d_320, timm's code) with the
                    same number of threads, in float32, and the whole program's time relative to it.

Programs run in turns; times are medians. Printed separately are the seconds to compile, the peak memory of the process
during the first run of the whole program (before torch is loaded), and the part of it that XLA plans for intermediate
values.
"""

import argparse
import importlib.util
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from fcclip_jax import command_line
from fcclip_jax.conventions import PRECISIONS, STRIDE, TASKS, round_up
from fcclip_jax.inference import buckets
from fcclip_jax.inference.postprocess import postprocess
from fcclip_jax.models.building import split_for_inference, without_text
from fcclip_jax.models.descriptions import CLIP_MODELS, fcclip_description
from fcclip_jax.models.fcclip import FCCLIP, normalize_images
from fcclip_jax.models.precision import Precision, choose_precision
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.process_memory import peak_memory, reset_peak_memory
from fcclip_jax.structs import TextClassifier
from fcclip_jax.text.embeddings import class_bucket

MODEL = "convnext_large_d_320"
CLASSES = 150
THINGS = 100
WHOLE, TORCH = "whole program", "torch trunk"
SIZES = ((512, 512), (800, 1067))
GIB = 2**30


class Case(NamedTuple):
    """One image size, compiled and ready to run."""

    size: tuple[int, int]
    programs: dict[str, Callable[[], Any]]
    compile_seconds: dict[str, float]
    peak_memory: int
    planned_memory: int


class Network(NamedTuple):
    """A model without its text tower, in a precision."""

    graphdef: nnx.GraphDef
    state: nnx.State
    """The weights, on the device."""
    precision: Precision


def network(model: FCCLIP, precision: Precision) -> Network:
    """Returns the network of a model as `Engine` runs it. The model keeps its weights and its text tower."""
    graphdef, state = split_for_inference(without_text(model), precision, jax.default_backend())
    return Network(graphdef, jax.device_put(state), precision)


def stages(graphdef: nnx.GraphDef, precision: Precision, canvas: tuple[int, int]) -> dict[str, Callable[..., Any]]:
    """Returns the four stages and the whole, as functions of the weights and of each other's results."""

    def trunk(state, images, image_hw):
        pixels, valid_hw = normalize_images(images, image_hw, precision.dtype)
        return nnx.merge(graphdef, state).clip.image(pixels, valid_hw), valid_hw

    def pixel_decoder(state, features, valid_hw):
        return nnx.merge(graphdef, state).pixel_decoder(features, valid_hw)

    def mask_decoder(state, pixels, clip_dense, valid_hw, text):
        model = nnx.merge(graphdef, state)
        queries = model.mask_decoder(pixels, valid_hw)[-1]
        void = model.void_embedding[...]
        prediction = model.mask_decoder.predict(queries, pixels.mask_features, valid_hw, text, void)
        return prediction.mask_logits, model.classify(prediction, clip_dense, valid_hw, text)

    def post_processing(mask_logits, class_probs, is_thing, num_classes, image_hw):
        every_task = dict.fromkeys(TASKS, class_probs)
        return postprocess(mask_logits, every_task, is_thing, num_classes, image_hw, image_hw, canvas=canvas)

    def whole(state, images, image_hw, text, is_thing):
        features, valid_hw = trunk(state, images, image_hw)
        pixels = pixel_decoder(state, features, valid_hw)
        mask_logits, class_probs = mask_decoder(state, pixels, features.clip_dense, valid_hw, text)
        return post_processing(mask_logits, class_probs, is_thing, text.num_classes, image_hw)

    functions = {
        "trunk": trunk,
        "pixel decoder": pixel_decoder,
        "mask decoder": mask_decoder,
        "post-processing": post_processing,
        WHOLE: whole,
    }
    return {name: jax.default_matmul_precision(precision.products)(function) for name, function in functions.items()}


def build(net: Network, embed_dim: int, size: tuple[int, int]) -> Case:
    """Compiles all programs for one size, and runs the whole program once."""
    rng = np.random.default_rng(0)
    shape = tuple(round_up(side, STRIDE) for side in size)
    images = np.zeros((1, *shape, 3), np.uint8)
    images[:, : size[0], : size[1]] = rng.integers(0, 256, (*size, 3), np.uint8)
    image_hw = np.asarray([size], np.int32)
    text, is_thing = classifier(rng, embed_dim)
    images, image_hw, text, is_thing = jax.device_put((images, image_hw, text, is_thing))

    functions, state = stages(net.graphdef, net.precision, buckets.canvas(size)), net.state
    programs, seconds = {}, {}

    def compiled(name: str, *args: Any) -> Any:
        start = time.perf_counter()
        program = jax.jit(functions[name]).lower(*args).compile()
        seconds[name] = time.perf_counter() - start
        programs[name] = lambda: jax.block_until_ready(program(*args))
        return program

    whole = compiled(WHOLE, state, images, image_hw, text, is_thing)
    reset_peak_memory()
    programs[WHOLE]()
    peak = peak_memory()
    planned = whole.memory_analysis()
    features, valid_hw = compiled("trunk", state, images, image_hw)(state, images, image_hw)
    pixels = compiled("pixel decoder", state, features, valid_hw)(state, features, valid_hw)
    inputs = (state, pixels, features.clip_dense, valid_hw, text)
    mask_logits, class_probs = compiled("mask decoder", *inputs)(*inputs)
    compiled("post-processing", mask_logits, class_probs, is_thing, text.num_classes, image_hw)
    ordered = {name: programs[name] for name in functions}
    return Case(size, ordered, seconds, peak, planned.temp_size_in_bytes if planned else 0)


def classifier(rng: np.random.Generator, embed_dim: int) -> tuple[TextClassifier, np.ndarray]:
    """Returns CLASSES random embeddings in their bucket, and which classes are things."""
    rows = class_bucket(CLASSES)
    embeddings = np.zeros((rows, embed_dim), np.float32)
    embeddings[:CLASSES] = rng.standard_normal((CLASSES, embed_dim), np.float32)
    embeddings[:CLASSES] /= np.linalg.norm(embeddings[:CLASSES], axis=1, keepdims=True)
    groups = np.full(rows, rows, np.int32)
    groups[:CLASSES] = np.arange(CLASSES)
    classes = np.arange(rows)
    return TextClassifier(embeddings, groups, classes % 2 == 0, np.asarray(CLASSES, np.int32)), classes < THINGS


def torch_trunk(size: tuple[int, int], threads: int) -> Callable[[], Any]:
    """Returns PyTorch's image trunk on a random image of this size, padded to the same multiple of 32."""
    import open_clip
    import torch

    torch.set_num_threads(threads)
    trunk = open_clip.create_model(MODEL, pretrained=None).visual.trunk.eval()
    image = torch.randn(1, 3, *(round_up(side, STRIDE) for side in size))

    def run() -> Any:
        with torch.inference_mode():
            return trunk.forward_features(image)

    return run


def measure(programs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Returns the median seconds of each program. They run in turns: other load on the machine affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for run in programs.values():
        run()
    for _ in range(repeats):
        for name, run in programs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def parse_size(text: str) -> tuple[int, int]:
    """Reads "800x1067": height x width in pixels."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not all(map(int, found.groups())):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 800x1067")
    return int(found[1]), int(found[2])


def report(case: Case, seconds: dict[str, float]) -> None:
    """Prints the table of one size."""
    print(f"\n{case.size[0]}x{case.size[1]}           seconds   to compile")
    for name, value in seconds.items():
        compile_seconds = f"{case.compile_seconds[name]:9.1f}" if name in case.compile_seconds else ""
        print(f"  {name:16} {value:8.3f}    {compile_seconds}")
    if TORCH in seconds:
        print(f"  {WHOLE} / {TORCH}: {seconds[WHOLE] / seconds[TORCH]:.2f}")
    peak, planned = case.peak_memory / GIB, case.planned_memory / GIB
    print(f"  peak memory {peak:.2f} GiB; XLA's intermediate values are {planned:.2f} GiB of it")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fcclip_jax.inference.timing", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--size",
        type=parse_size,
        action="append",
        help="HEIGHTxWIDTH in pixels; repeat it for several sizes. The default is 512x512 and 800x1067.",
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program; the default is 3")
    parser.add_argument("--precision", choices=PRECISIONS, help="the default is the device's")
    parser.add_argument("--torch", action="store_true", help="also time PyTorch's image trunk")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats is {args.repeats}; it must be at least 1")
    if args.torch and not all(importlib.util.find_spec(name) for name in ("torch", "open_clip")):
        parser.error("--torch needs torch and open_clip: pip install 'fcclip-jax[convert]'")
    device = jax.devices()[0]
    try:
        precision = choose_precision(args.precision, device)
    except ValueError as error:
        parser.error(str(error))
    # A cached program would make the seconds to compile meaningless.
    jax.config.update("jax_enable_compilation_cache", False)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"FC-CLIP {MODEL} on {device.device_kind} ({threads} threads), {precision.name}, jax {jax.__version__}")
    description = fcclip_description(CLIP_MODELS[MODEL])
    # The model itself is not kept: its weights would count twice in the peak memory.
    net = network(random_model(description), precision)
    # All memory is measured before torch is loaded.
    cases = [build(net, description.clip.image.embed_dim, size) for size in args.size or SIZES]
    for case in cases:
        programs = dict(case.programs)
        if args.torch:
            programs[TORCH] = torch_trunk(case.size, threads)
        report(case, measure(programs, args.repeats))
    return command_line.DONE


if __name__ == "__main__":
    sys.exit(main())
