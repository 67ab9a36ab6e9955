"""Times an evaluation without its network: post-processing and scoring of one image, ours and the official steps.

    python -m tests.evaluation.timing [--repeats 5]
    python -m tests.evaluation.timing --sweep        times table 8's sweep and one evaluation, network and scoring included
    python -m tests.evaluation.timing --programs     counts the programs that XLA compiles for 200 images of many sizes

The official steps (fcclip.py: semantic_inference, panoptic_inference, instance_inference; detectron2's evaluators;
panopticapi's algorithm) are implemented here in PyTorch and NumPy, without the files that they write and read. Both get
the same mask logits and class scores, in turns.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np
import torch
from etils import epath
from PIL import Image
from pycocotools import mask as coco_mask
from torch.nn import functional

from configs.eval import get_config
from fcclip_jax.conventions import IGNORE, RANDOM_WEIGHTS, TASKS
from fcclip_jax.evaluation.evaluate import evaluate
from fcclip_jax.evaluation.examples import Examples
from fcclip_jax.evaluation.paper_tables import SWEEPS
from fcclip_jax.evaluation.rows import Example, Row
from fcclip_jax.evaluation.scores import image_line, sweep_line
from fcclip_jax.inference.buckets import canvas
from fcclip_jax.inference.postprocess import postprocess
from fcclip_jax.inference.results import make_result
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.metrics.panoptic import Truth
from fcclip_jax.models.descriptions import CLIP_MODELS, fcclip_description
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.process_memory import peak_memory
from fcclip_jax.text.vocabulary import Vocabulary

QUERIES = 250


class Case(NamedTuple):
    name: str
    vocabulary: str
    resized: tuple[int, int]
    output: tuple[int, int]
    tasks: tuple[str, ...]
    before_resize: bool = False


CASES = (
    Case("COCO", "coco_panoptic", (800, 1067), (480, 640), TASKS),
    Case("Cityscapes", "cityscapes", (1024, 2048), (1024, 2048), TASKS),
    Case("A-847", "ade20k_847", (800, 1067), (512, 683), ("semantic",), True),
)


class Inputs(NamedTuple):
    logits: np.ndarray
    """[h, w, Q] at a quarter of the padded size."""
    probs: np.ndarray
    """[Q, K + 1], void last."""
    example: Example


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.evaluation.timing", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ours", action="store_true", help="run only ours, to measure its memory")
    parser.add_argument(
        "--sweep", action="store_true", help="time table 8's sweep with ConvNeXt-L, 800 pixels, 150 classes"
    )
    parser.add_argument("--programs", action="store_true", help="count compiled programs, with a small random model")
    options = parser.parse_args(argv)
    if options.sweep:
        print(sweep_against_evaluation(options.repeats))
        return 0
    if options.programs:
        print(programs_of_sizes())
        return 0
    for case in CASES:
        vocabulary = Vocabulary.load(case.vocabulary)
        inputs = make_inputs(case, vocabulary)
        mine = Ours(case, vocabulary, inputs)
        line = mine()  # compiles
        if options.ours:
            print(
                f"{case.name:10}: {median(mine, options.repeats):.3f} s an image, {peak_memory() / 2**30:.2f} GiB at most"
            )
            continue
        theirs = official(case, vocabulary, inputs)
        agreement = compare(case, line, theirs, vocabulary)
        seconds: dict[str, list[float]] = {"ours": [], "official": []}
        for _ in range(options.repeats):
            seconds["ours"].append(timed(mine))
            seconds["official"].append(timed(lambda: official(case, vocabulary, inputs)))  # noqa: B023
        ours, other = (statistics.median(seconds[name]) for name in ("ours", "official"))
        print(
            f"{case.name:10} {case.output[0]}x{case.output[1]}, {QUERIES} queries, {len(vocabulary.classes)} classes:"
            f" {1 / ours:.2f} images/s, official steps {1 / other:.2f}: {other / ours:.1f} times; {agreement}",
            flush=True,
        )
    return 0


def sweep_against_evaluation(repeats: int) -> str:
    model = random_model(fcclip_description(CLIP_MODELS["convnext_large_d_320"]), 0)
    segmenter = Segmenter(model, Vocabulary.load("coco_panoptic"), fingerprint="random 0")
    vocabulary = Vocabulary.load("ade20k_150")
    segmenter.set_classes(vocabulary)
    case = Case("ADE20K", "ade20k_150", (800, 1067), (512, 683), TASKS)
    examples, example = examples_of(vocabulary), make_inputs(case, vocabulary).example
    image = np.random.default_rng(0).integers(0, 256, (*case.output, 3), dtype=np.uint8)
    ways = SWEEPS["ensemble"].ways(segmenter.engine.ensemble)

    def evaluation(tasks: tuple[str, ...]) -> dict:
        [(_, result)] = segmenter.stream([image], tasks=tasks)
        return image_line(examples, 0, example, result)

    def sweep() -> dict:
        [(_, results)] = segmenter.engine.sweep([image], ways)
        return sweep_line(examples, 0, example, results)

    calls = {"all": lambda: evaluation(TASKS), "panoptic": lambda: evaluation(("panoptic",)), "sweep": sweep}
    for call in calls.values():
        call()  # compiles
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(timed(call))
    whole, alone, swept = (statistics.median(values) for values in seconds.values())
    return (
        f"one evaluation {whole:.2f} s an image, of the panoptic task alone {alone:.2f} s, the sweep's {len(ways)} settings"
        f" {swept:.2f} s: {swept / whole:.2f} and {swept / alone:.2f} times"
    )


def examples_of(vocabulary: Vocabulary) -> Examples:
    """Returns a dataset of one image, as far as scoring reads it."""
    return Examples("timing", vocabulary, [Row(1, epath.Path("1.jpg"))], [(1, 1)], instances={}, annotation_digest="")


def programs_of_sizes() -> str:
    """Counts the programs of a whole evaluation of label maps, the text tower included."""
    jax.config.update("jax_enable_compilation_cache", False)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(event) if event.endswith("/backend_compile_duration") else None
    )
    rng = np.random.default_rng(0)
    sizes = [photo_size(rng) for _ in range(200)]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name in ("photos", "maps"):
            (root / name).mkdir()
        for index, (height, width) in enumerate(sizes):
            labels = Image.fromarray(rng.integers(0, 150, (6, 8), dtype=np.uint8)).resize((width, height), 0)
            labels.save(root / "maps" / f"{index:03}.png")
            labels.convert("RGB").save(root / "photos" / f"{index:03}.png")
        config = get_config("custom")
        paths = {"custom.images": str(root / "photos"), "custom.labels": str(root / "maps")}
        tasks = {"panoptic": False, "instances": False}
        config.update_from_flattened_dict({"custom.words": "ade20k_150", **paths, **tasks})
        os.environ["FCCLIP_JAX_CACHE"] = str(root / "cache")
        evaluate(config, RANDOM_WEIGHTS, str(root / "work"))
    return f"{len(sizes)} images of {len(set(sizes))} sizes: {len(compiled)} programs"


def photo_size(rng: np.random.Generator) -> tuple[int, int]:
    """Draws a height and width like ADE20K's: mostly a shorter side of 512 or 256, in any proportion from 1 to 2.5."""
    short = int(rng.choice([512, 256, rng.integers(200, 2000)], p=[0.7, 0.15, 0.15]))
    long = round(short * min(2.5, 1 + rng.exponential(0.4)))
    return (short, long) if rng.random() < 0.75 else (long, short)


def median(call, repeats: int) -> float:
    return statistics.median(timed(call) for _ in range(repeats))


def timed(call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def make_inputs(case: Case, vocabulary: Vocabulary) -> Inputs:
    """Makes smooth masks; a quarter of the queries have a class, the others void, each with a high score, as in a trained model."""
    rng = np.random.default_rng(0)
    padded = tuple(-(-side // 32) * 32 for side in case.resized)
    small = torch.from_numpy(rng.normal(size=(1, QUERIES, 7, 9)).astype(np.float32))
    logits = functional.interpolate(small, size=(padded[0] // 4, padded[1] // 4), mode="bicubic")[0] * 8 - 8
    logits = logits.permute(1, 2, 0).contiguous().numpy()
    classes = len(vocabulary.classes)
    scores = rng.normal(size=(QUERIES, classes + 1)).astype(np.float32)
    sure = rng.random(QUERIES) < 0.25
    scores[np.arange(QUERIES), np.where(sure, rng.integers(0, classes, QUERIES), classes)] += 10
    probs = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    height, width = case.output
    segments = rng.integers(0, 20, (6, 8))
    id_map = np.kron(segments, np.ones((-(-height // 6), -(-width // 8)), int))[:height, :width] + 1000
    ids = np.unique(id_map)
    labels = rng.integers(0, classes, len(ids))
    semantic = labels[np.searchsorted(ids, id_map)].astype(np.uint16)
    truth = Truth(id_map, ids, labels, np.zeros(len(ids), bool)) if "panoptic" in case.tasks else None
    image = np.zeros((height, width, 3), np.uint8)
    return Inputs(logits, probs, Example(image, truth, semantic, None))


class Ours:
    """Post-processes and scores as the segmenter and the evaluation do."""

    def __init__(self, case: Case, vocabulary: Vocabulary, inputs: Inputs):
        self._case, self._vocabulary, self._example = case, vocabulary, inputs.example
        self._program = jax.jit(postprocess, static_argnames=("canvas", "tasks", "semantic_before_resize"))
        things = np.asarray(vocabulary.thing_mask)
        sizes = (np.asarray([size], np.int32) for size in (case.resized, case.output))
        self._arrays = jax.device_put((inputs.logits[None], inputs.probs[None], things, np.int32(len(things)), *sizes))
        self._options = {
            "canvas": canvas(case.output),
            "tasks": case.tasks,
            "semantic_before_resize": case.before_resize,
        }
        self._examples = examples_of(vocabulary)

    def __call__(self) -> dict:
        output = jax.device_get(self._program(*self._arrays, **self._options))
        part = jax.tree.map(lambda x: x[0], output)
        result = make_result(self._example.image, self._vocabulary, part)
        return image_line(self._examples, 0, self._example, result)


@torch.no_grad()
def official(case: Case, vocabulary: Vocabulary, inputs: Inputs) -> dict:
    """Computes the same scores by the official steps."""
    found: dict = {}
    classes = len(vocabulary.classes)
    things = np.flatnonzero(vocabulary.thing_mask)
    padded = tuple(side * 4 for side in inputs.logits.shape[:2])
    masks = torch.from_numpy(inputs.logits).permute(2, 0, 1)[None]
    masks = functional.interpolate(masks, size=padded, mode="bilinear", align_corners=False)
    masks = masks[0, :, : case.resized[0], : case.resized[1]]
    probs = torch.from_numpy(inputs.probs)

    def to_output(planes: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(planes[None], size=case.output, mode="bilinear", align_corners=False)[0]

    if not case.before_resize:
        masks = to_output(masks)
    if "semantic" in case.tasks:
        planes = torch.einsum("qc,qhw->chw", probs[:, :-1], masks.sigmoid())
        planes = to_output(planes) if case.before_resize else planes
        semantic = planes.argmax(dim=0).numpy().astype(int)
        truth = np.where(inputs.example.semantic == IGNORE, classes, inputs.example.semantic).astype(int)
        confusion = np.bincount((classes + 1) * semantic.reshape(-1) + truth.reshape(-1), minlength=(classes + 1) ** 2)
        found["semantic"], found["semantic_map"] = confusion, semantic
    if "panoptic" in case.tasks:
        id_map, segments = official_panoptic(masks, probs, set(things.tolist()))
        found["panoptic"] = official_quality(id_map, segments, inputs.example.panoptic)
    if "instances" in case.tasks:
        scores, indices = probs[:, :-1].flatten().topk(100, sorted=False)
        labels, queries = indices % classes, indices // classes
        kept = torch.from_numpy(np.isin(labels.numpy(), things))
        chosen = masks[queries[kept]]
        binary = (chosen > 0).float()
        shares = (chosen.sigmoid().flatten(1) * binary.flatten(1)).sum(1) / (binary.flatten(1).sum(1) + 1e-6)
        scores = scores[kept] * shares
        encoded = [coco_mask.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0] for mask in binary.numpy()]
        found["instances"] = [
            {
                "category_id": int(label),
                "score": float(score),
                "segmentation": {**rle, "counts": rle["counts"].decode()},
            }
            for label, score, rle in zip(labels[kept], scores, encoded, strict=True)
        ]
    return found


def official_panoptic(masks: torch.Tensor, probs: torch.Tensor, things: set[int]) -> tuple[np.ndarray, list]:
    scores, labels = probs.max(-1)
    keep = labels.ne(probs.shape[1] - 1) & (scores > 0.0)
    scores, labels, masks = scores[keep], labels[keep], masks[keep].sigmoid()
    best = (scores.view(-1, 1, 1) * masks).argmax(0)
    id_map, segments, stuff = torch.zeros(masks.shape[-2:], dtype=torch.int32), [], {}
    for row in range(len(labels)):
        label = int(labels[row])
        won, own = (best == row).sum().item(), (masks[row] >= 0.5).sum().item()
        mask = (best == row) & (masks[row] >= 0.5)
        if won > 0 and own > 0 and mask.sum().item() > 0:
            if won / own < 0.8:
                continue
            if label not in things and label in stuff:
                id_map[mask] = stuff[label]
                continue
            segments.append((len(segments) + 1, label))
            if label not in things:
                stuff[label] = len(segments)
            id_map[mask] = len(segments)
    return id_map.numpy(), segments


def official_quality(id_map: np.ndarray, segments: list, truth: Truth) -> dict[int, list[float]]:
    """Counts true and false positives, false negatives and IoU by class, as panopticapi's pq_compute_single_core does."""
    offset = 256**3
    found_areas = dict(zip(*(values.tolist() for values in np.unique(id_map, return_counts=True)), strict=True))
    annotated = dict(zip(truth.ids.tolist(), truth.classes.tolist(), strict=True))
    areas = {id: int((truth.id_map == id).sum()) for id in annotated}
    pairs = truth.id_map.astype(np.uint64) * offset + id_map.astype(np.uint64)
    shared = {}
    for pair, number in zip(*(values.tolist() for values in np.unique(pairs, return_counts=True)), strict=True):
        shared[pair // offset, pair % offset] = number
    classes, counts = dict(segments), {}
    matched_truth, matched_found = set(), set()
    for (id, place), number in shared.items():
        if id not in annotated or place not in classes or annotated[id] != classes[place]:
            continue
        iou = number / (found_areas[place] + areas[id] - number - shared.get((0, place), 0))
        if iou > 0.5:
            row = counts.setdefault(annotated[id], [0, 0, 0, 0.0])
            row[0] += 1
            row[3] += iou
            matched_truth.add(id)
            matched_found.add(place)
    for id, label in annotated.items():
        if id not in matched_truth:
            counts.setdefault(label, [0, 0, 0, 0.0])[2] += 1
    for place, label in classes.items():
        if place not in matched_found and shared.get((0, place), 0) / found_areas[place] <= 0.5:
            counts.setdefault(label, [0, 0, 0, 0.0])[1] += 1
    return counts


def compare(case: Case, line: dict, theirs: dict, vocabulary: Vocabulary) -> str:
    """Returns how far the results of both agree."""
    agreement = []
    if "panoptic" in case.tasks:
        same = {label: values for label, *values in line["panoptic"]}
        equal = same.keys() == theirs["panoptic"].keys() and all(
            values[:3] == theirs["panoptic"][label][:3] for label, values in same.items()
        )
        agreement.append(f"panoptic counts {'equal' if equal else 'DIFFER'}")
    if "semantic" in case.tasks:
        classes = len(vocabulary.classes)
        confusion = np.zeros((classes + 1, classes + 1), np.int64)
        for truth, found, pixels in line["semantic"]:
            confusion[found, truth] = pixels
        moved = np.abs(confusion.reshape(-1) - theirs["semantic"]).sum() / 2
        agreement.append(f"{moved / confusion.sum():.1e} of the pixels in another class")
    if "instances" in case.tasks:
        agreement.append(f"{len(line['instances'])} and {len(theirs['instances'])} instances")
    return ", ".join(agreement)


if __name__ == "__main__":
    sys.exit(main())
