"""Whole evaluations, with random weights: what is asked of them is that they always say the same."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest
from ml_collections import ConfigDict

from fcclip_jax.data import benchmarks
from fcclip_jax.evaluation.run import run
from tests.data import layouts
from tests.training import CONFIGS, load_config

ROOT = pathlib.Path(__file__).parents[2]
IMAGES = 7
# A random model is sure of nothing: without a threshold its segments are there to be counted.
SMALL = {"short_side": 64, "max_side": 96, "overlap_threshold": 0.0, "worst": 2}


def config(benchmark: str, root: pathlib.Path, **changes) -> ConfigDict:
    found = load_config("eval", benchmark)
    found.update_from_flattened_dict({**SMALL, "root": str(root), **changes})
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
    assert found["reported"]["pq"] == 26.8
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
    ports = ("--distributed", "--coordinator=localhost:12393", "--process_count=2")
    processes = [
        start(data, tmp_path, cache, *ports, f"--process_index={index}", devices=2, batch_size=2) for index in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert report(tmp_path) == report(straight)
    assert len(list((tmp_path / "images").iterdir())) == 2
    assert "ADE20K, 7 of" in outputs[0] and "ADE20K, 7 of" not in outputs[1]
