"""configs/world.py trains and configs/eval.py:world evaluates, without any files of data."""

import json
import pathlib
import re
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs.eval import get_config
from fcclip_jax import checkpoint
from fcclip_jax.evaluation.config import open_examples
from fcclip_jax.evaluation.evaluate import evaluate
from fcclip_jax.training import train as training
from fcclip_jax.training.train import open_datasets, train
from fcclip_jax.world import words
from fcclip_jax.world.panoptic import DESIGNS, SPLITS
from fcclip_jax.world.scenes import World
from tests.training import tiny_runs


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory) -> Iterator[None]:
    """Compiles programs once for all runs of this file."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def config(**changes) -> ConfigDict:
    """Returns the configuration with a model and images that train in seconds."""
    found = tiny_runs.load_config("world")
    small = {
        **tiny_runs.OVERRIDES,
        "steps": 2,
        "model.clip": "small",
        "init": "random",
        "data.workers": 0,
        "data.world.images": 8,
    }
    found.update_from_flattened_dict({**small, **changes})
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("world") / "run"
    train(config(**{"eval.every": 2, "eval.images": 2, "eval.pictures": 0, "eval.short_side": 64}), workdir)
    return workdir


def test_training_needs_no_files_and_sees_the_seen_words_alone(run):
    trained = checkpoint.read(run / "final")
    assert {entry.name for entry in trained.training_vocabulary.classes} == words.SEEN
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("pq" in key for line in lines for key in line)


def test_the_training_data_are_the_configured_ones():
    dataset, val_dataset = open_datasets(config(**{"eval.every": 5, "data.world.designs": "kept_back"}))
    assert (dataset.name, len(dataset)) == ("world_train_kept_back", 8)
    assert (val_dataset.name, len(val_dataset)) == ("world_val_kept_back", 1000)
    assert open_datasets(config(**{"eval.every": 0}))[1] is None


def test_a_resumed_run_keeps_its_jitter(run):
    with pytest.raises(
        ValueError, match=re.escape("has jitter [0.75, 1.35], and the configuration [0.5, 1.0]: a resumed")
    ):
        train(config(**{"steps": 3, "data.jitter": (0.5, 1.0)}), run)
    # Runs that are older than the value were made with the official range.
    old = {"images": 8, "crop": 64}
    training._check_same_stream(epath.Path("run"), old, {**old, "jitter": [0.1, 2.0]})
    with pytest.raises(ValueError, match=re.escape("has jitter [0.1, 2.0], and the configuration [0.75, 1.35]")):
        training._check_same_stream(epath.Path("run"), old, {**old, "jitter": [0.75, 1.35]})


def test_the_evaluation_offers_all_words_and_counts_unseen_ones_apart(run, tmp_path, capsys):
    # A random model's masks overlap so much that the default threshold would discard all segments.
    found = get_config("world")
    assert (found.short_side, found.max_side) == (256, 256)
    changes = {"images": 3, "short_side": 64, "max_side": 64, "overlap_threshold": 0.0, "worst": 1}
    found.update_from_flattened_dict(changes)
    assert evaluate(found, str(run / "final"), str(tmp_path)) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"pq", "pq_seen", "pq_unseen", "miou_unseen", "ap_unseen"} <= report["scores"].keys()
    assert {row["name"] for row in report["classes"] if row["seen"]} == words.SEEN
    assert [row["name"] for row in report["classes"]] == list(words.WORDS)
    assert "world_test, 3 of 3 images" in capsys.readouterr().out
    assert "000000.png" not in (tmp_path / "worst.html").read_text()  # ids are numbers


@pytest.mark.parametrize("designs", ["training", "kept_back"])
def test_examples_are_the_test_scenes(designs):
    found = get_config("world")
    found.world.designs = designs
    examples = open_examples(found, ("panoptic",))
    assert len(examples) == 1000 and set(examples.sizes) == {(256, 256)}
    scene = World(DESIGNS[designs], SPLITS.index("test")).scene(998)
    example = examples[998]
    assert np.array_equal(example.image, scene.image)
    classes = np.array([words.WORDS.index(name) for name in scene.names])
    assert np.array_equal(example.semantic, classes[scene.segment_map])
    assert example.panoptic.classes.tolist() == classes.tolist() and not example.panoptic.crowds.any()


def test_designs_are_for_the_world_alone():
    found = get_config("coco")
    found.world.designs = "kept_back"
    with pytest.raises(ValueError, match="world.designs is for the miniature world, but the benchmark is coco"):
        open_examples(found, ("panoptic",))
    found = get_config("world")
    found.world.designs = "noto"
    with pytest.raises(ValueError, match="the miniature world has no designs 'noto'"):
        open_examples(found, ("panoptic",))
