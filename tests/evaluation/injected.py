"""Replaces a model's results, or its mask logits, by annotations.

    python -m tests.evaluation.injected ROOT WORKDIR COORDINATOR INDEX

runs one of two processes that evaluate the annotations of all benchmarks, as tests.evaluation.layouts writes them, in place of
results. The process with the index 0 prints the scores.
"""

import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

import cv2
import jax
import numpy as np

from fcclip_jax.conventions import IGNORE
from fcclip_jax.evaluation.benchmarks import BENCHMARKS
from fcclip_jax.evaluation.config import EvalSettings
from fcclip_jax.evaluation.examples import Examples, open_benchmark
from fcclip_jax.evaluation.log import EvaluationLog
from fcclip_jax.evaluation.loop import segment_and_score
from fcclip_jax.evaluation.rows import Example
from fcclip_jax.evaluation.scores import summarize
from fcclip_jax.inference.engine import Engine
from fcclip_jax.inference.postprocess import postprocess
from fcclip_jax.inference.results import Instance, Panoptic, Result, Segment
from fcclip_jax.text.vocabulary import Vocabulary

QUERIES = 16


class Perfect(Engine):
    """Returns each image's annotation; it implements what `segment_and_score` uses of an Engine."""

    batch_size = 1

    def __init__(self, examples: Examples):
        self._vocabulary = examples.vocabulary
        self._by_image = {examples[index].image.tobytes(): examples[index] for index in range(len(examples))}

    def segment(self, images: Iterable[np.ndarray], *, tasks: Sequence[str], **_) -> Iterator[tuple[int, Result]]:
        for position, image in enumerate(images):
            yield position, perfect(self._by_image[image.tobytes()], self._vocabulary, tasks)


def scores(engine: Engine, examples: Examples, folder: pathlib.Path) -> dict[str, float]:
    tasks = BENCHMARKS[examples.name].tasks
    chosen = EvalSettings(tasks=tasks, semantic_before_resize=tasks == ("semantic",))
    outcome = segment_and_score(engine, examples, EvaluationLog(folder, {}), chosen, folder)
    assert len(outcome.lines) == len(examples) and not outcome.failed
    seen = examples.vocabulary.seen_by(Vocabulary.load("coco_panoptic"))
    return summarize(list(outcome.lines.values()), examples, seen).overall


def main(root: str, workdir: str, coordinator: str, index: str) -> None:
    jax.distributed.initialize(coordinator, num_processes=2, process_id=int(index))
    found = {}
    for name in BENCHMARKS:
        examples = open_benchmark(name, root)
        found[name] = scores(Perfect(examples), examples, pathlib.Path(workdir) / name)
    if index == "0":
        print(json.dumps(found))


def perfect(example: Example, vocabulary: Vocabulary, tasks: Sequence[str]) -> Result:
    """Returns the annotation as a result. Ignored pixels get the first class, since semantic results have no void."""
    panoptic = instances = None
    if example.panoptic is not None:
        id_map, segments, instances = np.zeros(example.image.shape[:2], np.int64), [], []
        for id, label in zip(example.panoptic.ids, example.panoptic.classes, strict=True):
            mask = example.panoptic.id_map == id
            if not mask.any():
                continue
            entry, area = vocabulary.classes[label], int(mask.sum())
            y, x = np.nonzero(mask)
            box = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
            segments.append(Segment(len(segments) + 1, int(label), entry, 1.0, area, box))
            id_map[mask] = len(segments)
            if entry.is_thing:
                bits = np.packbits(mask.T, axis=1, bitorder="little")
                instances.append(Instance(int(label), entry, 1.0, area, box, bits, mask.shape[0]))
        panoptic = Panoptic(id_map, segments)
    semantic = np.where(example.semantic == IGNORE, 0, example.semantic).astype(np.int64)
    return Result(example.image, vocabulary, panoptic, semantic, instances if "instances" in tasks else None)


def inject(engine: Engine, examples: Examples) -> None:
    """Replaces the network's mask logits by annotations; every other step is the engine's own."""
    photos = [engine.feeder.decode(index, examples[index].image) for index in range(len(examples))]
    by_pixels = {photo.resized.tobytes(): examples[photo.position] for photo in photos}
    program = jax.jit(postprocess, static_argnames=("canvas", "semantic_before_resize"))

    def segment(
        state,
        inputs,
        words,
        overlap_threshold,
        void_trust,
        alpha_beta,
        offered,
        *,
        canvas,
        tasks,
        before_resize,
        instance_scores,
    ):
        assert instance_scores == "mask_probability" and not void_trust.any()
        del state, alpha_beta, offered
        shape = inputs.images.shape[1:3]
        logits, probs = [], np.zeros((len(inputs.images), QUERIES, words.is_thing.shape[0] + 1), np.float32)
        for row, (image, (height, width)) in enumerate(zip(inputs.images, inputs.image_hw, strict=True)):
            masks, labels = logits_of(by_pixels[image[:height, :width].tobytes()], (int(height), int(width)), shape)
            logits.append(masks)
            probs[row, np.arange(QUERIES), labels] = 1.0  # -1, for unused queries, is void
        return program(
            np.stack(logits), dict.fromkeys(tasks, probs), words.is_thing, words.text.num_classes, inputs.image_hw,
            inputs.output_hw, canvas=canvas, overlap_threshold=overlap_threshold, semantic_before_resize=before_resize,
        )  # fmt: skip

    engine._segment = segment


def logits_of(example: Example, hw: tuple[int, int], bucket: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mask logits [h, w, Q] at stride 4 of an image resized to `hw`, and the class of each query (-1 for none)."""
    masks, labels = masks_of(example)
    logits = np.full((bucket[0] // 4, bucket[1] // 4, QUERIES), -20, np.float32)
    classes = np.full(QUERIES, -1, np.int64)
    for query, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        share = cv2.resize(mask.astype(np.float32), hw[::-1], interpolation=cv2.INTER_LINEAR)
        share = np.pad(share, ((0, -hw[0] % 4), (0, -hw[1] % 4)), mode="edge")
        share = share.reshape(share.shape[0] // 4, 4, -1, 4).mean(axis=(1, 3))
        logits[: share.shape[0], : share.shape[1], query] = 20 * (2 * share - 1)
        classes[query] = label
    return logits, classes


def masks_of(example: Example) -> tuple[list[np.ndarray], list[int]]:
    """Returns each annotated segment's mask and class; without a panoptic annotation, each class is a segment."""
    if example.panoptic is not None:
        rows = [row for row, id in enumerate(example.panoptic.ids) if (example.panoptic.id_map == id).any()]
        return [example.panoptic.id_map == example.panoptic.ids[row] for row in rows], [
            int(example.panoptic.classes[row]) for row in rows
        ]
    labels = sorted(set(np.unique(example.semantic).tolist()) - {IGNORE})
    return [example.semantic == label for label in labels], labels


if __name__ == "__main__":
    main(*sys.argv[1:])
