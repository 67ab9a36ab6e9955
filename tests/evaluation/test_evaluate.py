"""Whole evaluations with random weights: the report is the same however the work is divided."""

import dataclasses
import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from hotcoco.panoptic import PanopticEval
from ml_collections import ConfigDict
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from configs.eval import get_config
from fcclip_jax.conventions import IGNORE
from fcclip_jax.evaluation import evaluate as evaluate_module
from fcclip_jax.evaluation.benchmarks import BENCHMARKS
from fcclip_jax.evaluation.evaluate import evaluate
from fcclip_jax.evaluation.examples import Examples, open_benchmark, open_panoptic, open_semantic
from fcclip_jax.evaluation.loop import Outcome
from fcclip_jax.inference.engine import Engine
from fcclip_jax.models.descriptions import SMALL as SMALL_MODEL
from fcclip_jax.models.descriptions import DefaultsDescription
from fcclip_jax.text.vocabulary import Vocabulary
from tests.data import tiny
from tests.evaluation import layouts
from tests.ports import free_address

ROOT = pathlib.Path(__file__).parents[2]
IMAGES = 7
# A random model's masks overlap so much that the default threshold would discard all segments.
SMALL = {"short_side": 64, "max_side": 96, "overlap_threshold": 0.0, "worst": 2}


def config(benchmark: str, folder: pathlib.Path, **changes) -> ConfigDict:
    found = get_config(benchmark)
    found.update_from_flattened_dict({**SMALL, "root": str(folder), **changes})
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with which all processes of this file compile each program once."""
    folder = tmp_path_factory.mktemp("cache")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("data")
    layouts.write("ade20k", root, IMAGES)
    return root


@pytest.fixture(scope="module")
def straight(data, cache, tmp_path_factory) -> pathlib.Path:
    """The folder of an uninterrupted evaluation of ADE20K."""
    folder = tmp_path_factory.mktemp("straight")
    assert evaluate(config("ade20k", data), "random", str(folder)) == 0
    return folder


def start(
    data: pathlib.Path,
    workdir: pathlib.Path,
    cache: pathlib.Path,
    *flags: str,
    module: Sequence[str] = ("fcclip_jax.main",),
    devices: int = 1,
    **changes,
) -> subprocess.Popen:
    """Starts a process that evaluates ADE20K."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "FCCLIP_JAX_CACHE": str(cache),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    values = {**SMALL, "root": data, **changes}
    arguments = [
        sys.executable,
        "-m",
        *module,
        "--config=configs/eval.py:ade20k",
        "--checkpoint=random",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in values.items()),
        *flags,
    ]
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def report(folder: pathlib.Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def logged(folder: pathlib.Path) -> int:
    return sum(path.read_text().count("\n") for path in (folder / "images").glob("*.jsonl"))


def logged_lines(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for path in (folder / "images").iterdir() for line in path.read_text().splitlines()]


def check_pixels(folder: pathlib.Path, examples: Examples) -> None:
    """Checks that the lines count each annotated pixel once, and that the report has the share of right ones."""
    classes = len(examples.vocabulary.classes)
    right = counted = 0
    lines = logged_lines(folder)
    assert sorted(line["index"] for line in lines) == list(range(len(examples)))
    for line in lines:
        labels, pixels = np.unique(examples[line["index"]].semantic, return_counts=True)
        annotated = {classes if label == IGNORE else label: 0 for label in labels.tolist()}
        for truth, found, number in line["semantic"]:
            annotated[truth] += number
            right += number * (truth == found)
            counted += number * (truth != classes)
        assert list(annotated.values()) == pixels.tolist()
    assert counted and report(folder)["scores"]["pacc"] == pytest.approx(100 * right / counted, rel=1e-12)


def test_the_model_is_not_held_beside_the_engine(data, cache, tmp_path, monkeypatch):
    """Otherwise an evaluation in bfloat16 would hold three times the memory of its weights."""
    open_model, opened, alive = evaluate_module.open_model, [], []

    def watched(*arguments, **options):
        found = open_model(*arguments, **options)
        opened.append(weakref.ref(found.model))
        return found

    def segment_and_score(*_):
        gc.collect()
        alive.append(opened[0]())
        return Outcome({}, 0, 0.0)

    monkeypatch.setattr(evaluate_module, "open_model", watched)
    monkeypatch.setattr(evaluate_module, "segment_and_score", segment_and_score)
    with pytest.raises(ValueError, match="no image could be read"):
        evaluate(config("ade20k", data, precision="bfloat16"), "random", str(tmp_path))
    assert alive == [None]


def test_what_an_evaluation_leaves(straight, data):
    found = report(straight)
    assert (found["evaluated"], found["skipped"]) == (IMAGES, 0)
    assert (found["reported"]["pq"], found["reported_model"]) == (26.8, "ConvNeXt-L, COCO")
    scores = found["scores"]
    assert {"pq", "sq", "rq", "pq_things", "pq_stuff", "pq_seen", "pq_unseen", "miou", "miou_seen", "miou_unseen", "fwiou",
            "macc", "pacc", "ap", "ap50", "ap75", "ap_seen", "ap_unseen"} <= scores.keys()  # fmt: skip
    assert 0 < scores["pacc"] < 30  # chance, of 150 classes
    wall, flag = found["classes"][0], found["classes"][-1]
    assert (wall["name"], wall["thing"], wall["seen"]) == ("wall", False, True)
    assert (flag["name"], flag["thing"], flag["seen"]) == ("flag", True, False)
    assert {"pq", "sq", "rq", "iou", "acc", "ap"} <= wall.keys()
    table = (straight / "report.md").read_text()
    assert "**ADE20K, 7 of 2000 images**" in table and "| PQ " in table and " 26.8 |" in table
    page = (straight / "worst.html").read_text()
    assert page.count("<img") == 2 and len(list((straight / "worst").iterdir())) == 2
    check_pixels(straight, open_benchmark("ade20k", data))


def test_again_says_the_same_at_once(straight, data, cache, capsys):
    before = (straight / "report.json").read_bytes()
    assert evaluate(config("ade20k", data), "random", str(straight)) == 0
    assert (straight / "report.json").read_bytes() == before
    assert logged(straight) == IMAGES
    assert "images/s" not in capsys.readouterr().out  # nothing was left to do


def test_batches_say_the_same(straight, data, cache, tmp_path):
    assert evaluate(config("ade20k", data, batch_size=3), "random", str(tmp_path)) == 0
    assert report(tmp_path) == report(straight)


def test_killed_and_resumed_says_the_same(straight, data, cache, tmp_path):
    process = start(data, tmp_path, cache, module=("tests.evaluation.killed", "2"))
    output = process.communicate(timeout=600)[0]
    assert process.returncode == -signal.SIGKILL, output
    assert logged(tmp_path) == 2 and not (tmp_path / "report.json").exists()
    (killed,) = (tmp_path / "images").glob("*.jsonl")
    with killed.open("a") as file:
        file.write('{"index": 6, "image_id": "cut sho')  # a line that a killed process left incomplete
    process = start(data, tmp_path, cache)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert killed.read_text().count("\n") == 2 and logged(tmp_path) == IMAGES  # the two images were not repeated
    assert report(tmp_path) == report(straight)


def test_processes_and_devices_say_the_same(straight, data, cache, tmp_path):
    ports = ("--distributed", f"--coordinator={free_address()}", "--process_count=2")
    processes = [
        start(data, tmp_path, cache, *ports, f"--process_index={index}", devices=2, batch_size=2) for index in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert report(tmp_path) == report(straight)
    assert len(list((tmp_path / "images").iterdir())) == 2
    assert "ADE20K, 7 of" in outputs[0] and "ADE20K, 7 of" not in outputs[1]


def numbered(source: pathlib.Path, path: pathlib.Path) -> str:
    """Writes a copy whose image ids are numbers, as hotcoco requires; returns its path."""
    content = json.loads(source.read_text())
    for entry in content["images"]:
        entry["id"] = int(entry["id"])
    for entry in content["annotations"]:
        entry["image_id"] = int(entry["image_id"])
    path.write_text(json.dumps(content))
    return str(path)


def test_predictions_are_in_the_public_formats(straight, data, cache, tmp_path):
    """Other programs compute the report's scores from them."""
    assert evaluate(config("ade20k", data, save_predictions=True, worst=0), "random", str(tmp_path)) == 0
    assert report(tmp_path)["scores"] == report(straight)["scores"]
    folder, truth = tmp_path / "predictions", data / "ADEChallengeData2016"
    pq = PanopticEval(
        numbered(truth / "ade20k_panoptic_val.json", tmp_path / "truth.json"),
        numbered(folder / "panoptic.json", tmp_path / "found.json"),
        gt_folder=str(truth / "ade20k_panoptic_val"),
        pred_folder=str(folder / "panoptic"),
    )
    pq.evaluate()
    assert 100 * pq.results()["All"]["pq"] == pytest.approx(report(straight)["scores"]["pq"], rel=1e-9)
    annotation = COCO(str(truth / "ade20k_instance_val.json"))
    ap = COCOeval(annotation, annotation.loadRes(str(folder / "instances.json")), "segm")
    ap.evaluate()
    ap.accumulate()
    ap.summarize()
    assert 100 * ap.stats[0] == report(straight)["scores"]["ap"]
    examples = open_benchmark("ade20k", data)
    right = counted = 0
    for index, row in enumerate(examples.rows):
        found = np.asarray(Image.open(folder / "semantic" / f"{row.image_path.stem}.png"))
        wanted = examples[index].semantic
        right += (found == wanted).sum()
        counted += (wanted != IGNORE).sum()
    assert 100 * right / counted == pytest.approx(report(straight)["scores"]["pacc"], rel=1e-12)


def test_cityscapes_predictions_are_scored_its_own_way(cache, tmp_path):
    layouts.write("cityscapes", tmp_path)
    reports = []
    for save in (False, True):
        folder = tmp_path / str(save)
        assert evaluate(config("cityscapes", tmp_path, save_predictions=save, worst=0), "random", str(folder)) == 0
        reports.append(report(folder)["scores"])
    assert reports[0] == reports[1] and "ap50" in reports[0]
    found = json.loads((folder / "predictions" / "instances.json").read_text())
    rows = open_benchmark("cityscapes", tmp_path).rows
    assert found and {each["image_id"] for each in found} <= {row.image_id for row in rows}


def test_what_is_offered(data, cache, tmp_path):
    """With grounding, only classes of the annotation are found."""
    assert evaluate(config("ade20k", data, grounding=True, instances=False, worst=0), "random", str(tmp_path)) == 0
    found = report(tmp_path)
    assert found["reported"] == {"pq": 38.4, "miou": 54.1}
    lines = logged_lines(tmp_path)
    for line in lines:
        annotated = {truth for truth, _, _ in line["semantic"]} - {150}
        assert {label for _, label, _ in line["semantic"]} <= annotated
        assert {label for label, *_ in line["panoptic"]} <= annotated


def test_a_sweep_says_what_single_evaluations_say(data, cache, tmp_path, capsys):
    assert evaluate(config("ade20k", data, sweep="ensemble", images=3), "random", str(tmp_path / "sweep")) == 0
    found = report(tmp_path / "sweep")["sweep"]
    assert len(found) == 24
    assert "| 0.4   | 0.8  | geometric  |" in capsys.readouterr().out
    lines = {}
    for name in ("sweep", "single"):
        if name == "single":
            changes = {"ensemble.alpha": 0.5, "ensemble.beta": 0.7, "ensemble.mode": "arithmetic", "images": 3}
            evaluate(
                config("ade20k", data, semantic=False, instances=False, worst=0, **changes),
                "random",
                str(tmp_path / name),
            )
        (path,) = (tmp_path / name / "images").iterdir()
        lines[name] = sorted(map(json.loads, path.read_text().splitlines()), key=lambda line: line["index"])
    place = next(
        i for i, row in enumerate(found) if (row["alpha"], row["beta"], row["mode"]) == (0.5, 0.7, "arithmetic")
    )
    assert [line["sweep"][place] for line in lines["sweep"]] == [line["panoptic"] for line in lines["single"]]
    # Different settings give different counts.
    assert len({json.dumps([line["sweep"][i] for line in lines["sweep"]]) for i in range(24)}) > 6


def test_a_sweep_of_two_checkpoints(data, cache, tmp_path, capsys):
    changes = {"sweep": "classifiers", "second_checkpoint": "random", "images": 2}
    assert evaluate(config("ade20k", data, **changes), "random", str(tmp_path)) == 0
    found = report(tmp_path)
    assert [(row["in-vocabulary"], row["out-of-vocabulary"]) for row in found["sweep"]] == [
        ("own", "-"),
        ("-", "second"),
        ("own", "own"),
        ("own", "second"),
    ]
    assert {"pq", "pq_seen", "pq_unseen"} <= found["sweep"][0].keys()
    assert found["about"]["second_checkpoint"] != found["about"]["checkpoint"]
    assert "| 25.4 |" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("benchmark", ["cityscapes", "mapillary", "ade20k_847", "pascal_voc_20"])
def test_other_benchmarks(benchmark, cache, tmp_path):
    layouts.write(benchmark, tmp_path, 2)
    assert evaluate(config(benchmark, tmp_path, worst=1), "random", str(tmp_path / "run")) == 0
    scores = report(tmp_path / "run")["scores"]
    tasks = BENCHMARKS[benchmark].tasks
    assert [key in scores for key in ("pq", "miou", "ap")] == [
        task in tasks for task in ("panoptic", "semantic", "instances")
    ]
    check_pixels(tmp_path / "run", open_benchmark(benchmark, tmp_path))


def test_data_of_ones_own(cache, tmp_path):
    paths = tiny.write(tmp_path / "mine", 3)
    own = {
        f"custom.{name}": str(path)
        for name, path in zip(("images", "panoptic_json", "panoptic_pngs"), paths, strict=True)
    }
    assert evaluate(config("custom", tmp_path, **own), "random", str(tmp_path / "panoptic")) == 0
    found = report(tmp_path / "panoptic")
    assert {"pq", "miou", "ap"} <= found["scores"].keys() and found["reported"] == {}
    check_pixels(tmp_path / "panoptic", open_panoptic(*paths))
    folder = tmp_path / "pascal_ctx_d2"
    layouts.write("pascal_context_59", tmp_path)
    own = {"custom.images": str(folder / "images"), "custom.labels": str(folder / "annotations_ctx59"),
           "custom.words": "pascal_context_59", "panoptic": False, "instances": False}  # fmt: skip
    assert evaluate(config("custom", tmp_path, **own), "random", str(tmp_path / "semantic")) == 0
    vocabulary = Vocabulary.load("pascal_context_59")
    check_pixels(tmp_path / "semantic", open_semantic(own["custom.images"], own["custom.labels"], vocabulary))


def own_labels(folder: pathlib.Path, **changes) -> dict[str, object]:
    """Writes noise annotated with the labels 0 to 2 and 255; returns the configuration's changes."""
    random = np.random.default_rng(0)
    for name in ("x/0001", "y/0001"):
        for path in (folder / "photos" / f"{name}.jpg", folder / "maps" / f"{name}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            depth = (3,) if path.suffix == ".jpg" else ()
            values = random.integers(0, 256, (48, 64, 3)) if depth else random.choice([0, 1, 2, 255], (48, 64))
            Image.fromarray(values.astype(np.uint8)).save(path)
    own = {"images": str(folder / "photos"), "labels": str(folder / "maps"), "words": "cat; sofa; wall", **changes}
    return {"panoptic": False, "instances": False} | {f"custom.{name}": value for name, value in own.items()}


def test_label_maps_of_ones_own(cache, tmp_path, capsys):
    """255 is ignored, files that share a name get different names, and other words make another evaluation."""
    own = own_labels(tmp_path)
    folder = tmp_path / "run"
    assert evaluate(config("custom", tmp_path, save_predictions=True, **own), "random", str(folder)) == 0
    assert capsys.readouterr().out.startswith("3 classes: cat, sofa, wall\n")
    maps = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "maps").rglob("*.png"))]
    lines = logged_lines(folder)
    for line in lines:
        pairs = np.array(line["semantic"])
        assert set(pairs[:, 0]) == {0, 1, 2, 3}  # 3 stands for ignored pixels
        assert pairs[pairs[:, 0] == 3, 2].sum() == (maps[line["index"]] == 255).sum()
    assert sorted(path.name for path in (folder / "predictions" / "semantic").iterdir()) == ["0001-2.png", "0001.png"]
    for changes, what in (({"words": "tree; sky; road"}, "vocabulary"), ({"ignore_label": 254}, "has the label 255")):
        with pytest.raises(ValueError, match=what):
            evaluate(
                config("custom", tmp_path, save_predictions=True, **own_labels(tmp_path, **changes)),
                "random",
                str(folder),
            )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"first_label": -1}, "first_label is -1; labels must be at least 0"),
        ({"ignore_label": 1}, "the ignored label 1 belongs to a class: classes have the labels 0 to 2"),
        ({"words": "cat;; sofa"}, "the class name '' is empty"),
        ({"words": "cat, kitten; sofa; wall"}, "custom.words has commas and semicolons, which both separate classes"),
        ({"words": "classes.txt"}, "custom.words names the file classes.txt, which does not exist"),
        ({"words": ""}, "custom has images, labels: give images, panoptic_json and"),
        (
            {"panoptic_json": "p.json"},
            "custom has images, labels, panoptic_json, words: give images, panoptic_json and",
        ),
    ],
)
def test_what_is_refused_of_label_maps(changes, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(config("custom", tmp_path, **own_labels(tmp_path, **changes)), "random", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_annotation_that_is_of_another_form_is_skipped_and_said(cache, tmp_path, capsys):
    """The panoptic PNG is a grey map, whose numbers belong to no segment."""
    paths = tiny.write(tmp_path / "mine", 3)
    png = paths.pngs / "001.png"
    Image.open(png).convert("L").save(png)
    own = {"images": paths.images, "panoptic_json": paths.json, "panoptic_pngs": paths.pngs}
    own = {f"custom.{name}": str(path) for name, path in own.items()}
    assert evaluate(config("custom", tmp_path, **own), "random", str(tmp_path / "run")) == 1
    assert (report(tmp_path / "run")["evaluated"], report(tmp_path / "run")["skipped"]) == (2, 1)
    shown = capsys.readouterr()
    assert "001.png has the segment id" in shown.out + shown.err


def test_a_damaged_image_is_skipped_and_said(cache, tmp_path, capsys):
    truths = layouts.write("pascal_voc_20", tmp_path, 3)
    path = tmp_path / "pascal_voc_d2" / "images" / "validation" / f"{truths[1].name}.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert evaluate(config("pascal_voc_20", tmp_path), "random", str(tmp_path / "run")) == 1
    assert (report(tmp_path / "run")["evaluated"], report(tmp_path / "run")["skipped"]) == (2, 1)
    shown = capsys.readouterr()
    assert f"{truths[1].name}.jpg" in shown.out + shown.err
    assert "1 image was skipped: unreadable, or too large for the memory." in shown.out


def test_processes_that_share_no_folder_are_told(data, cache, tmp_path):
    coordinator = free_address()
    two = [
        start(data, tmp_path / f"of {index}", cache, "--distributed", f"--coordinator={coordinator}", "--process_count=2",
              f"--process_index={index}", images=2)
        for index in range(2)
    ]  # fmt: skip
    for process in two:
        shown, _ = process.communicate(timeout=600)
        assert process.returncode == 2, shown
        assert (
            "has 1 of 2 images, and 0 could not be read" in shown
            and "give all processes one --workdir that they share" in shown
        )


@pytest.mark.parametrize("other", ["exponents", "norms"])
def test_the_same_weights_in_another_model_are_another_evaluation(straight, data, cache, monkeypatch, other):
    changed = {
        "exponents": dataclasses.replace(SMALL_MODEL, ensemble=dataclasses.replace(SMALL_MODEL.ensemble, alpha=1.0)),
        "norms": dataclasses.replace(
            SMALL_MODEL,
            clip=dataclasses.replace(
                SMALL_MODEL.clip, image=dataclasses.replace(SMALL_MODEL.clip.image, norm_eps=1e-3)
            ),
        ),
    }
    monkeypatch.setattr(evaluate_module, "SMALL", changed[other])
    with pytest.raises(
        ValueError, match="has an evaluation with " + {"exponents": "ensemble", "norms": "checkpoint"}[other]
    ):
        evaluate(config("ade20k", data), "random", str(straight))


def test_the_overlap_threshold_is_the_checkpoints_by_default(data, cache, tmp_path, monkeypatch):
    model = dataclasses.replace(SMALL_MODEL, defaults=DefaultsDescription(overlap_threshold=0.25))
    monkeypatch.setattr(evaluate_module, "SMALL", model)
    chosen = config("ade20k", data, images=2, worst=0)
    chosen.overlap_threshold = None
    for _ in range(2):  # the second time it resumes
        assert evaluate(chosen, "random", str(tmp_path)) == 0
        assert report(tmp_path)["about"]["overlap_threshold"] == 0.25
    chosen.overlap_threshold = 0.5
    with pytest.raises(ValueError, match="has an evaluation with overlap_threshold = 0.25, but this one has 0.5"):
        evaluate(chosen, "random", str(tmp_path))


def test_how_void_is_rescaled(straight, data, cache, tmp_path, monkeypatch):
    """The checkpoint's values hold unless the configuration has others; those of FC-CLIP stay out of the record."""
    used = []
    segment = Engine.segment

    def spied(self, *args, **options):
        used.append((options["void_trust"], options["instance_scores"]))
        return segment(self, *args, **options)

    monkeypatch.setattr(Engine, "segment", spied)
    assert not {"void_trust", "instance_scores"} & report(straight)["about"].keys()
    defaults = DefaultsDescription(panoptic_void_trust=0.5, instance_scores="mask_logit")
    monkeypatch.setattr(evaluate_module, "SMALL", dataclasses.replace(SMALL_MODEL, defaults=defaults))
    assert evaluate(config("ade20k", data, images=1, worst=0), "random", str(tmp_path / "a")) == 0
    assert used == [({"panoptic": 0.5, "semantic": 0.0, "instances": 0.0}, "mask_logit")]
    chosen = {"void_trust.panoptic": 0.25, "void_trust.semantic": 1.0, "instance_scores": "mask_probability"}
    assert evaluate(config("ade20k", data, images=1, worst=0, **chosen), "random", str(tmp_path / "b")) == 0
    assert used[1:] == [({"panoptic": 0.25, "semantic": 1.0, "instances": 0.0}, "mask_probability")]
    about = report(tmp_path / "b")["about"]
    assert about["void_trust"] == used[1][0] and "instance_scores" not in about


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_that_of_the_engine(data, cache, tmp_path, monkeypatch, precision):
    seen = []
    segment = Engine.segment

    def spied(self, *args, **options):
        seen.append(self.precision.name)
        return segment(self, *args, **options)

    monkeypatch.setattr(Engine, "segment", spied)
    assert evaluate(config("ade20k", data, precision=precision, images=2), "random", str(tmp_path)) == 0
    assert set(seen) == {precision}
    assert report(tmp_path)["about"]["precision"] == precision


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ensemble.alpha": 0.9}, 'has an evaluation with ensemble = {"alpha": 0.4,.* but this one has {"alpha": 0.9'),
        ({"images": 3}, "has an evaluation with images = "),
        ({"precision": "bfloat16"}, "has an evaluation with precision = .*float32.* but this one has .*bfloat16"),
        ({"precision": "highest"}, "precision is 'highest'; choose float32, tf32 or bfloat16"),
        (
            {"precision": "tf32"},
            "precision tf32 needs an NVIDIA GPU .* but the device is cpu; choose float32 or bfloat16",
        ),
        ({"overlap_threshold": 2.0}, "overlap_threshold is 2.0; it must be from 0 to 1"),
        ({"ensemble.mode": "mean"}, "ensemble.mode is 'mean'; choose geometric or arithmetic"),
        ({"void_trust.semantic": 1.5}, "void_trust is 1.5 for semantic: choose numbers from 0 to 1"),
        ({"instance_scores": "logit"}, "instance_scores is 'logit'; choose mask_probability or mask_logit"),
        ({"void_trust.panoptic": 0.5}, "has an evaluation with void_trust = null, but this one has .*0.5"),
        ({"panoptic": False, "semantic": False, "instances": False}, "panoptic, semantic and instances are all False"),
        ({"custom.words": "cat"}, "custom.words is for data of your own, but the benchmark is ade20k"),
        ({"instances": False}, r'has an evaluation with tasks = \["panoptic", "semantic", "instances"\]'),
        ({"sweep": "ensembles"}, "sweep is 'ensembles'; choose one of ensemble, resolution, classifiers"),
        ({"sweep": "ensemble", "grounding": True}, "leave grounding out"),
        (
            {"sweep": "ensemble", "ensemble.beta": 0.5},
            "sweep=ensemble sets the ensemble itself: leave ensemble.beta",
        ),
        ({"sweep": "classifiers"}, "give second_checkpoint with sweep=classifiers"),
        ({"second_checkpoint": "random"}, "give second_checkpoint with sweep=classifiers"),
        ({"sweep": "ensemble", "second_checkpoint": "random"}, "or with sweep=resolution"),
        ({"sweep": "classifiers", "second_checkpoint": "/nowhere"}, "/nowhere"),
        ({"max_side": 32}, "max_side is 32; it must be at least short_side, 64"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"root": "/nowhere"}, "the folder of ADE20K does not exist at /nowhere"),
    ],
)
def test_what_is_refused(straight, data, cache, changes, message):
    before = (straight / "report.json").read_bytes()
    with pytest.raises((ValueError, OSError), match=message):
        evaluate(config("ade20k", data, **changes), "random", str(straight))
    assert (straight / "report.json").read_bytes() == before
