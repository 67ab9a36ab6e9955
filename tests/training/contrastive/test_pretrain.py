"""Whole runs of contrastive pre-training: they learn, resume to the last bit, and give the same on any devices."""

import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from fcclip_jax import checkpoint
from fcclip_jax.data.caption_folder import CaptionFolder
from fcclip_jax.training.contrastive import pretrain as pretraining
from fcclip_jax.training.contrastive.config import contrastive_settings
from fcclip_jax.training.contrastive.pretrain import HELD_OUT_SEED, pretrain
from fcclip_jax.world import words
from tests.training import tiny_runs

ROOT = pathlib.Path(__file__).parents[3]
STEPS = 20
CHANGES = {
    "steps": STEPS,
    "data.sizes": ((32, 8, 1),),
    "data.first_steps": 0,
    "optim.warmup_steps": 2,
    "checkpoint.every": 10,
}


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> pathlib.Path:
    """Returns a file that describes pictures of one colour each, with the world's words: eight, which is one step."""
    folder = tmp_path_factory.mktemp("captions")
    colours = np.random.default_rng(0).integers(0, 256, (8, 3), np.uint8)
    with (folder / "captions.jsonl").open("w") as file:
        for i, colour in enumerate(colours):
            Image.fromarray(np.broadcast_to(colour, (40, 40, 3)).copy()).save(folder / f"{i}.png")
            file.write(json.dumps({"image": f"{i}.png", "captions": [f"a photo of a {words.THINGS[i]}."]}) + "\n")
    return folder / "captions.jsonl"


@pytest.fixture(scope="module")
def straight(captions, cache, tmp_path_factory) -> pathlib.Path:
    """Returns the folder of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    pretrain(config(captions), workdir)
    return workdir


def config(captions: pathlib.Path, **changes) -> ConfigDict:
    found = tiny_runs.load_config("world_clip", "debug")
    found.update_from_flattened_dict({**CHANGES, "data.captions": str(captions), **changes})
    return found


def parameters(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    return dict(checkpoint.read(workdir / "final").parameters)


def losses(workdir: pathlib.Path) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_it_learns(straight):
    found = losses(straight)
    assert len(found) == STEPS
    # Without knowledge, each of eight pairs has a chance of an eighth or so; the colours tell them apart.
    assert found[0] > 1.5 and np.mean(found[-3:]) < 0.5 * found[0]
    trained = checkpoint.read(straight / "final")
    assert trained.training_vocabulary is None and trained.known_words is None
    start = checkpoint.read(straight / "start").parameters
    assert all(not np.array_equal(value, start[name]) for name, value in trained.parameters.items())


def test_a_run_asked_to_stop_saves_and_resumes_to_the_last_bit(captions, straight, cache, tmp_path, monkeypatch, capfd):
    class Stopping(CaptionFolder):
        """Asks its own process to stop when the fifth step is loaded."""

        loaded = itertools.count()

        def example(self, index, rng, side):
            if next(self.loaded) == 4 * 8:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().example(index, rng, side)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "CaptionFolder", Stopping)
        pretrain(config(captions), tmp_path / "run")
    output = capfd.readouterr()
    (step,) = (int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert f"stop requested: step {step} is saved" in output.out + output.err and step < 10
    assert not (tmp_path / "run" / "final").exists()
    pretrain(config(captions), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(straight)
    for name, value in parameters(straight).items():
        np.testing.assert_array_equal(parameters(tmp_path / "run")[name], value, err_msg=name)


def test_four_devices_give_the_result_of_one(captions, straight, cache, tmp_path):
    """Three steps, through the command line."""
    values = {**CHANGES, "data.captions": captions, "steps": 3, "mesh.data": 4}
    command = [sys.executable, "-m", "fcclip_jax.main", f"--config={tiny_runs.CONFIGS / 'world_clip.py'}:debug"]
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "FCCLIP_JAX_CACHE": str(cache),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'four'}", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "on 4 cpu devices, from step 0 to 3" in done.stdout + done.stderr
    pretrain(config(captions, steps=3), tmp_path / "one")
    # Sums have another order, and Muon enlarges the rounding of directions without gradient up to 500 times.
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    found, expected = parameters(tmp_path / "four"), parameters(tmp_path / "one")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-3, err_msg=name)


def test_another_run_is_not_taken_for_this_one(captions, straight):
    others = shutil.copy(captions, captions.with_name("others.jsonl"))
    for changes, complaint in (
        ({"data.captions": str(others)}, "a resumed run must use the same images; restore the values"),
        ({"data.sizes": ((64, 8, 1),)}, "a resumed run must use the same images; restore the values"),
        ({"data.first_steps": 5}, "a resumed run must use the same images; restore the values"),
        ({"model.clip": "small"}, "holds a run with a different model; choose another workdir"),
    ):
        with pytest.raises(ValueError, match=complaint):
            pretrain(config(captions, **changes), straight)


def test_it_adapts_a_clip(captions, straight, tmp_path):
    changes = {"init": str(straight / "final")}
    found = config(captions, **changes)
    start = pretraining._start(checkpoint.resolve(tmp_path), found, pretraining._described(found))
    for name, value in parameters(straight).items():
        np.testing.assert_array_equal(start.parameters[name], value, err_msg=name)
    assert start.known_words is None  # as before
    with pytest.raises(ValueError, match=r"the CLIP in .*final is not the configuration's model.clip 'small'"):
        pretrain(config(captions, **changes, **{"model.clip": "small"}), tmp_path / "other")


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"model.clip": "RN50"}, "model.clip is 'RN50', a ResNet, whose attention pooling is not trained here"),
        ({"data.sizes": ((50, 8, 1),)}, "data.sizes has (50, 8, 1); give (pixels, images, captions of each image)"),
        ({"data.sizes": ((64, 8),)}, "data.sizes has (64, 8); give"),
        ({"data.sizes": ((64, 8, 0),)}, "data.sizes has (64, 8, 0); give"),
        ({"data.sizes": ()}, "data.sizes is empty"),
        ({"average": 1.0}, "average is 1.0; the moving average's decay must be between 0 and 1"),
        ({"optim.clip_norm": -1.0}, "optim.clip_norm is -1.0; it must be at least 0"),
        ({"data.captions": "world", "seed": HELD_OUT_SEED}, "which the held-out scenes have; choose another"),
    ],
)
def test_values_that_cannot_be(captions, tmp_path, changes, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        pretrain(config(captions, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_caption_that_the_clip_cannot_read_is_named(captions, tmp_path):
    file = captions.with_name("unknown.jsonl")
    file.write_text(json.dumps({"image": "0.png", "captions": ["a xylophonist"]}))
    with pytest.raises(ValueError, match="the text 'a xylophonist' has a token that this model has no embedding of"):
        pretrain(config(file), tmp_path / "run")


def test_the_configuration():
    settings = contrastive_settings(tiny_runs.load_config("world_clip"))
    assert settings.sizes[0].side == 64 and settings.sizes[-1].side == 128
    with pytest.raises(ValueError, match="has no variant 'RN50'; leave it out, or choose vit or debug"):
        tiny_runs.load_config("world_clip", "RN50")
