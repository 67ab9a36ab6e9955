"""Perfect results score 100 on all benchmarks; perfect mask logits score what an oracle in PyTorch computes."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from fcclip_jax.conventions import IGNORE
from fcclip_jax.evaluation.benchmarks import BENCHMARKS
from fcclip_jax.evaluation.examples import Examples, open_benchmark
from fcclip_jax.inference.engine import Engine
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.metrics import panoptic
from tests.evaluation import layouts
from tests.evaluation.injected import QUERIES, Perfect, inject, logits_of, scores
from tests.ports import free_address

ROOT = pathlib.Path(__file__).parents[2]
WANTED = {
    "semantic": ("miou", "fwiou", "macc", "pacc"),
    "panoptic": ("pq", "sq", "rq", "pq_things"),
    "instances": ("ap", "ap50"),
}


def check_100(name: str, found: dict[str, float]) -> None:
    for task in BENCHMARKS[name].tasks:
        for key in WANTED[task]:
            assert found[key] == pytest.approx(100, abs=1e-9), key


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_is_right_scores_100(name, tmp_path):
    layouts.write(name, tmp_path, 3)
    examples = open_benchmark(name, tmp_path)
    check_100(name, scores(Perfect(examples), examples, tmp_path / "run"))


def test_what_is_right_scores_100_in_two_processes(tmp_path):
    for name in BENCHMARKS:
        layouts.write(name, tmp_path, 3)
    command = [
        sys.executable,
        "-m",
        "tests.evaluation.injected",
        str(tmp_path),
        str(tmp_path / "run"),
        free_address(),
    ]
    processes = [
        subprocess.Popen([*command, str(index)], cwd=ROOT, stdout=subprocess.PIPE, text=True) for index in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    found = json.loads(outputs[0].splitlines()[-1])
    assert found.keys() == BENCHMARKS.keys()
    for name, values in found.items():
        check_100(name, values)
        assert len(list((tmp_path / "run" / name / "images").iterdir())) == 2


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("name", ["ade20k", "pascal_context_59"])
def test_what_the_resolution_of_masks_takes(name, batch_size, tmp_path):
    """Compares resizing, buckets, batches and post-processing with PyTorch's interpolation of the same logits."""
    layouts.write(name, tmp_path, 5)
    examples = open_benchmark(name, tmp_path)
    segmenter = Segmenter.random(short_side=64, max_side=96, batch_size=batch_size, batched=True)
    segmenter.set_classes(examples.vocabulary)
    inject(segmenter.engine, examples)
    found = scores(segmenter.engine, examples, tmp_path / "run")
    wanted = oracle(examples, segmenter.engine)
    assert 50 < found["miou"] < 100
    for key, value in wanted.items():
        # Pixels on borders may fall either way: 1 in 10,000 of them here.
        assert found[key] == pytest.approx(value, abs=0.02), key


def oracle(examples: Examples, engine: Engine) -> dict[str, float]:
    """Computes scores by the official code's steps (fcclip.py) in PyTorch, image by image."""
    classes = len(examples.vocabulary.classes)
    total = panoptic.PanopticCounts.zeros(classes)
    right, annotated, predicted = (np.zeros(classes) for _ in range(3))
    for index in range(len(examples)):
        example = examples[index]
        item = engine.feeder.decode(index, example.image)
        hw = item.resized.shape[:2]
        padded = tuple(-(-side // 32) * 32 for side in hw)
        logits, labels = logits_of(example, hw, padded)
        masks = torch.from_numpy(logits).permute(2, 0, 1)[None]
        masks = functional.interpolate(masks, size=padded, mode="bilinear", align_corners=False)[:, :, : hw[0], : hw[1]]
        probs = masks.sigmoid()
        if examples.has_panoptic:
            masks = functional.interpolate(masks, size=example.image.shape[:2], mode="bilinear", align_corners=False)
            probs = masks.sigmoid()
        one_hot = torch.zeros((QUERIES, classes))
        used = np.flatnonzero(labels >= 0)
        one_hot[used, labels[used]] = 1
        per_class = torch.einsum("qc,qhw->chw", one_hot, probs[0])
        if not examples.has_panoptic:
            per_class = functional.interpolate(
                per_class[None], size=example.image.shape[:2], mode="bilinear", align_corners=False
            )[0]
        semantic = per_class.argmax(dim=0).numpy()
        counted = example.semantic != IGNORE
        for array, values in (
            (right, semantic[counted & (semantic == example.semantic)]),
            (annotated, example.semantic[counted]),
            (predicted, semantic[counted]),
        ):
            array += np.bincount(values, minlength=classes)
        if examples.has_panoptic:
            best = probs[0, used].argmax(dim=0).numpy()
            id_map, kept = np.zeros(best.shape, np.int64), []
            for query in used:
                own = probs[0, query].numpy() >= 0.5
                final = (best == query) & own
                if (best == query).any() and own.any() and final.any() and (best == query).sum() / own.sum() >= 0.8:
                    kept.append(labels[query])
                    id_map[final] = len(kept)
            total = total.plus(panoptic.count(example.panoptic, id_map, np.asarray(kept), classes))
    occurs = annotated > 0
    scores = {"miou": 100 * (right[occurs] / (annotated + predicted - right)[occurs]).mean()}
    if examples.has_panoptic:
        scores["pq"] = 100 * panoptic.average(total, [True] * classes).pq
    return scores
