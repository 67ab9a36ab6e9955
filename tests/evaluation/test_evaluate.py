"""Whole evaluations, with random weights: what is asked of them is that they always say the same."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from hotcoco.panoptic import PanopticEval
from ml_collections import ConfigDict
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fcclip_jax.conventions import IGNORE
from fcclip_jax.evaluation import benchmarks
from fcclip_jax.evaluation import evaluate as evaluation_run
from fcclip_jax.evaluation.evaluate import run
from fcclip_jax.inference import engine
from fcclip_jax.models.descriptions import SMALL as SMALL_MODEL
from tests.data import tiny
from tests.evaluation import layouts
from tests.ports import free_address
from tests.training.tiny_runs import CONFIGS, load_config

ROOT = pathlib.Path(__file__).parents[2]
IMAGES = 7
# A random model is sure of nothing: without a threshold its segments are there to be counted.
SMALL = {"short_side": 64, "max_side": 96, "overlap_threshold": 0.0, "worst": 2}


def config(benchmark: str, folder: pathlib.Path, **changes) -> ConfigDict:
    found = load_config("eval", benchmark)
    found.update_from_flattened_dict({**SMALL, "root": str(folder), **changes})
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Programs are compiled once for all evaluations of this file, in whichever process."""
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
    """The folder of an undisturbed evaluation of ADE20K."""
    folder = tmp_path_factory.mktemp("straight")
    assert run(config("ade20k", data), "random", str(folder)) == 0
    return folder


def start(data: pathlib.Path, workdir: pathlib.Path, cache: pathlib.Path, *flags: str, devices: int = 1, **changes):
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
        "fcclip_jax.main",
        f"--config={CONFIGS / 'eval.py'}:ade20k",
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
    # Every annotated pixel is in exactly one line.
    lines = [json.loads(line) for path in (straight / "images").iterdir() for line in path.read_text().splitlines()]
    examples = benchmarks.open_benchmark("ade20k", data)
    for line in lines:
        assert sum(pixels for _, _, pixels in line["semantic"]) == examples[line["index"]].semantic.size


def test_again_says_the_same_at_once(straight, data, cache, capsys):
    before = (straight / "report.json").read_bytes()
    assert run(config("ade20k", data), "random", str(straight)) == 0
    assert (straight / "report.json").read_bytes() == before
    assert logged(straight) == IMAGES
    assert "images/s" not in capsys.readouterr().out  # nothing was left to do


def test_batches_say_the_same(straight, data, cache, tmp_path):
    assert run(config("ade20k", data, batch_size=3), "random", str(tmp_path)) == 0
    assert report(tmp_path) == report(straight)


def test_killed_and_resumed_says_the_same(straight, data, cache, tmp_path):
    process = start(data, tmp_path, cache)
    for _ in range(2400):
        if logged(tmp_path) >= 2:
            break
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    process.communicate()
    done = logged(tmp_path)
    assert 2 <= done < IMAGES and not (tmp_path / "report.json").exists()
    with next((tmp_path / "images").glob("*.jsonl")).open("a") as file:
        file.write('{"index": 6, "image_id": "cut sho')  # as a kill in the midst of a line leaves it
    process = start(data, tmp_path, cache)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
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
    """A copy whose image ids are numbers, as hotcoco wants them."""
    content = json.loads(source.read_text())
    for entry in content["images"]:
        entry["id"] = int(entry["id"])
    for entry in content["annotations"]:
        entry["image_id"] = int(entry["image_id"])
    path.write_text(json.dumps(content))
    return str(path)


def test_predictions_are_in_the_public_formats(straight, data, cache, tmp_path):
    """Scored anew by others' programs, they are worth what the report says."""
    assert run(config("ade20k", data, save_predictions=True, worst=0), "random", str(tmp_path)) == 0
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
    examples = benchmarks.open_benchmark("ade20k", data)
    right = counted = 0
    for index, path in enumerate(examples.image_paths):
        found = np.asarray(Image.open(folder / "semantic" / f"{path.stem}.png"))
        wanted = examples[index].semantic
        right += (found == wanted).sum()
        counted += (wanted != IGNORE).sum()
    assert 100 * right / counted == pytest.approx(report(straight)["scores"]["pacc"], rel=1e-12)


def test_cityscapes_predictions_are_scored_its_own_way(cache, tmp_path):
    layouts.write("cityscapes", tmp_path)
    reports = []
    for save in (False, True):
        folder = tmp_path / str(save)
        assert run(config("cityscapes", tmp_path, save_predictions=save, worst=0), "random", str(folder)) == 0
        reports.append(report(folder)["scores"])
    assert reports[0] == reports[1] and "ap50" in reports[0]
    found = json.loads((folder / "predictions" / "instances.json").read_text())
    assert found and {each["image_id"] for each in found} <= set(
        benchmarks.open_benchmark("cityscapes", tmp_path).image_ids
    )


def test_what_is_offered(data, cache, tmp_path):
    """Grounding: nothing is found that the annotation does not have."""
    assert run(config("ade20k", data, grounding=True, instances=False, worst=0), "random", str(tmp_path)) == 0
    found = report(tmp_path)
    assert found["reported"] == {"pq": 38.4, "miou": 54.1}
    lines = [json.loads(line) for path in (tmp_path / "images").iterdir() for line in path.read_text().splitlines()]
    for line in lines:
        annotated = {truth for truth, _, _ in line["semantic"]} - {150}
        assert {label for _, label, _ in line["semantic"]} <= annotated
        assert {label for label, *_ in line["panoptic"]} <= annotated


def test_a_sweep_says_what_single_evaluations_say(data, cache, tmp_path, capsys):
    assert run(config("ade20k", data, sweep="ensemble", images=3), "random", str(tmp_path / "sweep")) == 0
    found = report(tmp_path / "sweep")["sweep"]
    assert len(found) == 24
    assert "| 0.4   | 0.8  | geometric  |" in capsys.readouterr().out
    lines = {}
    for name in ("sweep", "single"):
        if name == "single":
            changes = {"ensemble.alpha": 0.5, "ensemble.beta": 0.7, "ensemble.mode": "arithmetic", "images": 3}
            run(
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
    # They differ from one another: alpha and beta do something.
    assert len({json.dumps([line["sweep"][i] for line in lines["sweep"]]) for i in range(24)}) > 6


def test_a_sweep_of_two_checkpoints(data, cache, tmp_path, capsys):
    changes = {"sweep": "classifiers", "second_checkpoint": "random", "images": 2}
    assert run(config("ade20k", data, **changes), "random", str(tmp_path)) == 0
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
    assert run(config(benchmark, tmp_path, worst=1), "random", str(tmp_path / "run")) == 0
    scores = report(tmp_path / "run")["scores"]
    tasks = benchmarks.BENCHMARKS[benchmark].tasks
    assert [key in scores for key in ("pq", "miou", "ap")] == [
        task in tasks for task in ("panoptic", "semantic", "instances")
    ]


def test_data_of_ones_own(cache, tmp_path):
    paths = tiny.write(tmp_path / "mine", 3)
    own = {
        f"custom.{name}": str(path)
        for name, path in zip(("images", "panoptic_json", "panoptic_pngs"), paths, strict=True)
    }
    assert run(config("custom", tmp_path, **own), "random", str(tmp_path / "panoptic")) == 0
    found = report(tmp_path / "panoptic")
    assert {"pq", "miou", "ap"} <= found["scores"].keys() and found["reported"] == {}
    folder = tmp_path / "pascal_ctx_d2"
    layouts.write("pascal_context_59", tmp_path)
    own = {"custom.images": str(folder / "images"), "custom.labels": str(folder / "annotations_ctx59"),
           "custom.words": "pascal_context_59", "panoptic": False, "instances": False}  # fmt: skip
    assert run(config("custom", tmp_path, **own), "random", str(tmp_path / "semantic")) == 0
    assert "miou" in report(tmp_path / "semantic")["scores"]


def own_labels(folder: pathlib.Path, **changes) -> dict[str, object]:
    """Noise that is annotated with the labels 0 to 2, and 255."""
    random = np.random.default_rng(0)
    for name in ("x/0001", "y/0001"):
        for path in (folder / "photos" / f"{name}.jpg", folder / "maps" / f"{name}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            depth = (3,) if path.suffix == ".jpg" else ()
            values = random.integers(0, 256, (48, 64, 3)) if depth else random.choice([0, 1, 2, 255], (48, 64))
            Image.fromarray(values.astype(np.uint8)).save(path)
    own = {"images": str(folder / "photos"), "labels": str(folder / "maps"), "words": "cat; sofa; wall", **changes}
    return {"panoptic": False, "instances": False} | {f"custom.{name}": value for name, value in own.items()}


def test_label_maps_of_ones_own(cache, tmp_path):
    """255 does not count, files of one name do not get into each other's way, other words are another evaluation."""
    own = own_labels(tmp_path)
    folder = tmp_path / "run"
    assert run(config("custom", tmp_path, save_predictions=True, **own), "random", str(folder)) == 0
    maps = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "maps").rglob("*.png"))]
    lines = [json.loads(line) for path in (folder / "images").iterdir() for line in path.read_text().splitlines()]
    for line in lines:
        pairs = np.array(line["semantic"])
        assert set(pairs[:, 0]) == {0, 1, 2, 3}  # the last is what does not count
        assert pairs[pairs[:, 0] == 3, 2].sum() == (maps[line["index"]] == 255).sum()
    assert sorted(path.name for path in (folder / "predictions" / "semantic").iterdir()) == ["0001-2.png", "0001.png"]
    for changes, what in (({"words": "tree; sky; road"}, "vocabulary"), ({"ignore_label": 254}, "has the label 255")):
        with pytest.raises(ValueError, match=what):
            run(
                config("custom", tmp_path, save_predictions=True, **own_labels(tmp_path, **changes)),
                "random",
                str(folder),
            )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"first_label": -1}, "first_label is -1; labels are numbers from 0 on"),
        ({"ignore_label": 1}, "the label 1, which does not count, is also that of a class: labels are from 0 to 2"),
        ({"words": "cat;; sofa"}, "the class name '' is empty"),
        ({"words": ""}, "custom has images, labels: data of your own are"),
        ({"panoptic_json": "p.json"}, "custom has images, labels, panoptic_json, words: data of your own are"),
    ],
)
def test_what_is_refused_of_label_maps(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(config("custom", tmp_path, **own_labels(tmp_path, **changes)), "random", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_annotation_that_is_of_another_form_is_skipped_and_said(cache, tmp_path, capsys):
    """A grey map in the place of a panoptic PNG: its numbers are of no segment."""
    paths = tiny.write(tmp_path / "mine", 3)
    png = paths.pngs / "001.png"
    Image.open(png).convert("L").save(png)
    own = {"images": paths.images, "panoptic_json": paths.json, "panoptic_pngs": paths.pngs}
    own = {f"custom.{name}": str(path) for name, path in own.items()}
    assert run(config("custom", tmp_path, **own), "random", str(tmp_path / "run")) == 1
    assert (report(tmp_path / "run")["evaluated"], report(tmp_path / "run")["skipped"]) == (2, 1)
    shown = capsys.readouterr()
    assert "001.png has the segment id" in shown.out + shown.err


def test_a_damaged_image_is_skipped_and_said(cache, tmp_path, capsys):
    truths = layouts.write("pascal_voc_20", tmp_path, 3)
    path = tmp_path / "pascal_voc_d2" / "images" / "validation" / f"{truths[1].name}.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert run(config("pascal_voc_20", tmp_path), "random", str(tmp_path / "run")) == 1
    assert (report(tmp_path / "run")["evaluated"], report(tmp_path / "run")["skipped"]) == (2, 1)
    shown = capsys.readouterr()
    assert f"{truths[1].name}.jpg" in shown.out + shown.err
    assert "1 images could not be read and were skipped." in shown.out


def test_processes_that_share_no_folder_are_told(data, cache, tmp_path):
    """And in those that do, each tells of what the other could not read."""
    coordinator = free_address()
    two = [
        start(data, tmp_path / f"of {index}", cache, "--distributed", f"--coordinator={coordinator}", "--process_count=2",
              f"--process_index={index}", images=2)
        for index in range(2)
    ]  # fmt: skip
    for process in two:
        shown, _ = process.communicate(timeout=600)
        assert process.returncode == 2, shown
        assert "error: 1 of 2 images are in" in shown and "give all processes one --workdir that they share" in shown


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
    monkeypatch.setattr(evaluation_run, "SMALL", changed[other])
    with pytest.raises(
        ValueError, match="has an evaluation with " + {"exponents": "ensemble", "norms": "checkpoint"}[other]
    ):
        run(config("ade20k", data), "random", str(straight))


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_the_precision_of_products_is_that_of_the_programs(data, cache, tmp_path, monkeypatch, precision):
    """On a CPU all are float32: what can be seen here is what programs are traced with."""
    seen = []
    stack = engine.stack

    def spied(*args, **options):
        seen.append(jax.config.jax_default_matmul_precision)
        return stack(*args, **options)

    monkeypatch.setattr(engine, "stack", spied)
    assert run(config("ade20k", data, precision=precision, images=2), "random", str(tmp_path)) == 0
    assert seen == [precision] * 4  # two images, and two more for the page of the worst
    assert report(tmp_path)["about"]["precision"] == precision


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ensemble.alpha": 0.9}, 'has an evaluation with ensemble = {"alpha": 0.4,.* and this one has {"alpha": 0.9'),
        ({"images": 3}, "has an evaluation with images = "),
        ({"precision": "default"}, "has an evaluation with precision = .*highest.* and this one has .*default"),
        ({"precision": "float16"}, "precision is 'float16'; choose highest or default"),
        ({"overlap_threshold": 2.0}, "overlap_threshold is 2.0; it is a share"),
        ({"ensemble.mode": "mean"}, "ensemble.mode is 'mean'; choose geometric or arithmetic"),
        ({"panoptic": False, "semantic": False, "instances": False}, "there is nothing to evaluate"),
        ({"custom.words": "cat"}, "custom.words is for data of your own, and this is"),
        ({"instances": False}, r'has an evaluation with tasks = \["panoptic", "semantic", "instances"\]'),
        ({"sweep": "ensembles"}, "sweep is 'ensembles'; choose one of ensemble, resolution, classifiers"),
        ({"sweep": "ensemble", "grounding": True}, "leave grounding out"),
        (
            {"sweep": "ensemble", "ensemble.beta": 0.5},
            "sweep=ensemble chooses the ensemble itself: leave ensemble.beta",
        ),
        ({"sweep": "classifiers"}, "second_checkpoint goes with it"),
        ({"second_checkpoint": "random"}, "second_checkpoint goes with it"),
        ({"sweep": "classifiers", "second_checkpoint": "/nowhere"}, "/nowhere"),
        ({"max_side": 32}, "max_side is 32; it must be at least short_side, 64"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"root": "/nowhere"}, "there is no folder of ADE20K at /nowhere"),
    ],
)
def test_what_is_refused(straight, data, cache, changes, message):
    before = (straight / "report.json").read_bytes()
    with pytest.raises((ValueError, OSError), match=message):
        run(config("ade20k", data, **changes), "random", str(straight))
    assert (straight / "report.json").read_bytes() == before
