"""Batches and devices: image by image they change no bit, batched they change only rounding.

    python -m tests.inference.test_batches

counts, on two virtual devices, the images whose results differ.
"""

import os
import subprocess
import sys

import jax
import numpy as np

from fcclip_jax import caching
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.inference.sweep import Way
from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.text.vocabulary import Vocabulary


def blocks(seed: int) -> np.ndarray:
    """Draws flat blocks of random colours, so many pixels lie between two classes."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return np.repeat(np.repeat(colours, 25, axis=0), 25, axis=1)


def make_segmenter(**options) -> Segmenter:
    segmenter = Segmenter(
        random_model(SMALL, 0), Vocabulary.load("coco_panoptic"), fingerprint="random 0", short_side=96, max_side=144,
        **options,
    )  # fmt: skip
    segmenter.set_classes(["cat, kitten", "sofa", "wall", "tree", "dog"], stuff=["wall", "tree"])
    return segmenter


def results(*, sweep: bool = False, **options) -> list[list[np.ndarray]]:
    """Returns all numbers of each image's results."""
    segmenter = make_segmenter(**options)
    images = [blocks(seed) for seed in range(11)]
    found = {}
    if sweep:
        # The second setting reads the images at another size.
        ways = [Way(segmenter.engine.ensemble), Way(segmenter.engine.ensemble, short_side=64)]
        for index, panoptics in segmenter.engine.sweep(images, ways, overlap_threshold=0.1):
            found[index] = [part for result in panoptics for part in panoptic_numbers(result)]
    else:
        for index, result in segmenter.stream(images, overlap_threshold=0.1):
            instances = result.instances
            scores = np.asarray([instance.score for instance in instances])
            assert len(scores) > 10
            found[index] = [*panoptic_numbers(result), result.semantic, scores, *(each.mask for each in instances)]
    return [found[index] for index in range(len(images))]


def panoptic_numbers(result) -> list[np.ndarray]:
    return [result.panoptic.id_map, np.asarray([segment.score for segment in result.panoptic.segments])]


def differing(ones: list[list[np.ndarray]], others: list[list[np.ndarray]]) -> list[int]:
    """Returns the images whose results differ in any bit."""
    pairs = enumerate(zip(ones, others, strict=True))
    return [
        index for index, (one, other) in pairs if len(one) != len(other) or not all(map(np.array_equal, one, other))
    ]


def test_any_batch_and_two_devices_give_the_same_bits(tmp_path):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "tests.inference.test_batches"]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "batches: 0 differ",
        "devices: 0 differ",
        "another: 0 differ",
        "a sweep: 0 differ",
        "batched: close",
        "warm: 0 compiled",
    ]


def on_two_devices() -> None:
    devices = jax.devices()
    assert len(devices) == 2
    alone = results()
    assert len(differing(alone, alone[1:] + alone[:1])) == len(alone)  # no two images have the same results
    # Eleven images: the last batches are not full.
    print(f"batches: {len(differing(alone, results(batch_size=3)))} differ")
    print(f"devices: {len(differing(alone, results(batch_size=2, devices=devices)))} differ")
    print(f"another: {len(differing(alone, results(devices=devices[1:])))} differ")
    swept = results(sweep=True)
    print(f"a sweep: {len(differing(swept, results(sweep=True, batch_size=2, devices=devices)))} differ")
    batched = results(batch_size=2, devices=devices, batched=True)
    same = [(one[2] == other[2]).mean() for one, other in zip(alone, batched, strict=True)]
    # Sums in another order: pixels between two classes may change.
    print("batched: close" if min(same) > 0.99 else f"batched: {same}")
    later = []
    for batched in (False, True):
        segmenter = make_segmenter(batch_size=2, devices=devices, batched=batched)
        segmenter.warm_up([blocks(0).shape[:2]])
        with caching.compile_times() as times:
            list(segmenter.stream(map(blocks, range(3))))
        later += times
    print(f"warm: {len(later)} compiled")


if __name__ == "__main__":
    on_two_devices()
