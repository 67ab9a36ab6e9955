"""Overfits a small model to a few photographs, to show that training learns.

    python -m tests.training.overfit FOLDER [--crop 256] [--steps 1500]

FOLDER is laid out like COCO's. The head trains; the trunk keeps its random weights. The panoptic quality on the same
photographs is compared with an oracle's: their ground truth at the resolution of the masks, a quarter of the
photograph's, through the same post-processing.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fcclip_jax.data import decoding, transforms
from fcclip_jax.data.datasets import open_dataset
from fcclip_jax.data.records import Record
from fcclip_jax.inference.postprocess import postprocess
from fcclip_jax.metrics.panoptic import Average, PanopticCounts, Truth, average, count
from fcclip_jax.models.building import named_variables, with_values
from fcclip_jax.models.descriptions import SMALL, ModelDescription
from fcclip_jax.models.fcclip import normalize_images
from fcclip_jax.structs import Batch, Targets
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.training import sharding
from fcclip_jax.training.losses.criterion import LossSettings
from fcclip_jax.training.optim import OptimSettings
from fcclip_jax.training.parameters import is_trainable
from fcclip_jax.training.starting_model import starting_point, training_classifier
from fcclip_jax.training.step import StepSettings, initial_state, make_train_step, skeleton

TRUNK = SMALL.clip
HEAD = dataclasses.replace(SMALL.head, hidden_dim=128, mask_dim=128, num_queries=100)
NO_JITTER = transforms.Jitter(flip=False, scale=1.0, offset=0.0)
MAX_SEGMENTS = 48


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.training.overfit", description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="FOLDER", type=pathlib.Path)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args(argv)
    report = overfit(options.folder, options.crop, options.steps, options.batch)
    share = report.measured.pq / report.oracle.pq
    print(
        f"loss {report.first_loss:.1f} -> {report.last_loss:.1f} ({report.first_loss / report.last_loss:.1f} times less);"
        f" {in_words(report.measured)}, oracle {in_words(report.oracle)}: {share:.2f} of it;"
        f" {report.seconds:.0f} s for {options.steps} steps of {options.batch} images"
    )
    return 0 if report.first_loss > 5 * report.last_loss and share > 0.85 else 1


class Report(NamedTuple):
    first_loss: float
    """The mean over the first ten steps."""
    last_loss: float
    """The mean over the last ten steps."""
    measured: Average
    """The trained model's quality on its training photographs."""
    oracle: Average
    seconds: float


def overfit(folder: pathlib.Path, crop: int, steps: int, batch_size: int) -> Report:
    datasets = [open_dataset("coco_panoptic", folder, split) for split in ("train", "val")]
    vocabulary = datasets[0].vocabulary
    photographs = [read(dataset[i], crop, vocabulary) for dataset in datasets for i in range(len(dataset))]

    description = ModelDescription(clip=TRUNK, head=HEAD)
    settings = StepSettings(
        losses=LossSettings(num_points=2048),
        optim=OptimSettings(
            learning_rate=1e-3, drop=0.3, milestones=tuple(int(share * steps) for share in (0.4, 0.6, 0.8, 0.9))
        ),
        compute_dtype="float32",
    )
    start = starting_point("random", description, vocabulary, seed=0, void_weight=settings.losses.void_weight)
    # A random text tower gives all words nearly the same embedding (cosines of 0.98): random directions replace them.
    text = training_classifier(start, None)
    directions = np.random.default_rng(1).normal(size=text.embeddings.shape).astype(np.float32)
    text = jax.device_put(text._replace(embeddings=directions / np.linalg.norm(directions, axis=1, keepdims=True)))
    model = skeleton(description, settings)
    names = list(named_variables(model))
    mesh = sharding.make_mesh(1, 1)
    state = initial_state({n: start.parameters[n] for n in names if is_trainable(n, False)}, settings, mesh)
    frozen = sharding.place_parameters({n: start.parameters[n] for n in names if not is_trainable(n, False)}, mesh)
    train_step = make_train_step(model, settings, mesh)

    things = np.asarray(vocabulary.thing_mask)
    is_thing = jnp.asarray(things)

    @jax.jit
    def segment(parameters, image, image_hw):
        trained = with_values(model, {**frozen, **parameters})
        pixels, valid_hw = normalize_images(image[None], jnp.full((1, 2), crop, jnp.int32))
        prediction, _ = trained(pixels, valid_hw, text)
        # A random CLIP cannot classify: the classes are those of the trained classifier alone.
        return found_in(prediction.mask_logits, jax.nn.softmax(prediction.class_logits), image_hw)

    @jax.jit
    def oracle(segment_map, labels, image_hw):
        slots = jnp.arange(MAX_SEGMENTS, dtype=jnp.int32)
        masks = (segment_map[..., None].astype(jnp.int32) == slots[None, None]).astype(jnp.float32)
        shares = masks.reshape(crop // 4, 4, crop // 4, 4, -1).mean(axis=(1, 3))
        classes = jnp.where(labels >= 0, labels, len(things))
        return found_in(20 * (shares[None] - 0.5), jax.nn.one_hot(classes, len(things) + 1)[None], image_hw)

    def found_in(mask_logits, class_probs, image_hw):
        hw = image_hw[None]
        return postprocess(
            mask_logits, {"panoptic": class_probs}, is_thing, np.int32(len(things)), hw, hw, canvas=(crop, crop)
        )

    def segmented(parameters, photograph):
        return segment(parameters, photograph.image, photograph.image_hw)

    def quality(segment_one) -> Average:
        counts = PanopticCounts.zeros(len(things))
        for p in photographs:
            found = jax.device_get(segment_one(p))
            number = int(found.segments.number[0])
            height, width = p.image_hw
            counts = counts.plus(
                count(p.truth, found.panoptic[0, :height, :width], found.segments.class_ids[0, :number], len(things))
            )
        return average(counts, things | True)

    losses, begin = [], time.perf_counter()
    rng = np.random.default_rng(0)
    progress = tqdm(range(steps), mininterval=5)
    for step in progress:
        rows = rng.permutation(len(photographs))[:batch_size]
        positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int32)
        chosen = [photographs[row] for row in rows]
        targets = Targets(np.stack([p.segment_map for p in chosen]), np.stack([p.labels for p in chosen]))
        batch = sharding.place_batch(Batch(np.stack([p.image for p in chosen]), targets, positions), mesh)
        with jax.set_mesh(mesh):
            state, found = train_step(state, frozen, text, batch)
        losses.append(float(found.loss))
        progress.set_postfix_str(f"loss {np.mean(losses[-10:]):.1f}", refresh=False)
        if step + 1 in (steps // 4, steps // 2, steps * 3 // 4, steps):
            measured = quality(partial(segmented, state.parameters))
            tqdm.write(f"step {step + 1}: loss {np.mean(losses[-10:]):.1f}, {in_words(measured)}", file=sys.stderr)
    seconds = time.perf_counter() - begin

    best = quality(lambda p: oracle(p.segment_map, p.labels, p.image_hw))
    return Report(float(np.mean(losses[:10])), float(np.mean(losses[-10:])), measured, best, seconds)


def in_words(quality: Average) -> str:
    return f"PQ {100 * quality.pq:.1f} (SQ {100 * quality.sq:.1f}, RQ {100 * quality.rq:.1f})"


class Photograph(NamedTuple):
    image: np.ndarray
    segment_map: np.ndarray
    labels: np.ndarray
    image_hw: np.ndarray
    truth: Truth


def read(record: Record, crop: int, vocabulary: Vocabulary) -> Photograph:
    """Reads a photograph, resized to fit into the crop, in its corner."""
    class_of = {entry.id: index for index, entry in enumerate(vocabulary.classes)}
    image, segments = decoding.decode(record, MAX_SEGMENTS)
    classes = np.asarray([class_of[category] for category in segments.categories.tolist()], np.int32)
    labels = np.full(MAX_SEGMENTS, -1, np.int32)
    labels[: len(classes)] = classes
    height, width = transforms.place(image.shape[:2], NO_JITTER, crop).shape
    segment_map = transforms.jitter_map(segments.segment_map, NO_JITTER, crop)
    seen = segment_map[:height, :width].astype(np.int64)
    # Segments that shrank to nothing cannot be found.
    left = np.flatnonzero(np.isin(np.arange(len(classes)), seen))
    id_map = np.where(seen == transforms.NONE, 0, seen + 1)
    truth = Truth(id_map, left + 1, classes[left].astype(np.int64), np.zeros(len(left), bool))
    image_hw = np.asarray([height, width], np.int32)
    return Photograph(transforms.jitter_image(image, NO_JITTER, crop), segment_map, labels, image_hw, truth)


if __name__ == "__main__":
    sys.exit(main())
