"""The command line of training: one sentence and exit code 2 for mistakes that the user can correct."""

import pathlib
import re
import subprocess
import sys

import jax
import pytest

from fcclip_jax import main
from fcclip_jax.evaluation.benchmarks import BENCHMARKS
from fcclip_jax.training import recipe
from fcclip_jax.training.config import step_settings
from tests.data import tiny
from tests.training import tiny_runs

ROOT = pathlib.Path(__file__).parents[1]

# ml_collections loads configuration files in a deprecated way.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")


@pytest.mark.parametrize("name, variant", [("coco", ""), ("coco", "debug"), ("coco", "trainable_clip"), ("coco", "RN50x4"),
                                           ("coco_rn50", ""), ("ade20k", ""), ("custom", "debug"), ("world", ""),
                                           ("world", "trainable_clip")])  # fmt: skip
def test_configurations(name, variant):
    config = tiny_runs.load_config(name, variant)
    settings = step_settings(config)
    assert settings.train_trunk == (variant == "trainable_clip")
    assert config.is_locked
    if "RN" in variant or name == "coco_rn50":
        assert config.model.clip.endswith("-quickgelu")


def test_the_official_recipe():
    config = tiny_runs.load_config("coco")
    assert (config.steps, config.batch_size, config.data.crop) == (368_750, 16, 1024)
    settings = step_settings(config)
    assert settings.optim.milestones == (327_778, 355_092)
    assert (settings.optim.learning_rate, settings.optim.weight_decay, settings.optim.clip_norm) == (1e-4, 0.05, 0.01)
    assert settings.losses.num_points == 12_544
    assert config.data.jitter == (0.1, 2.0)


def test_the_world_configuration_has_two_variants():
    with pytest.raises(ValueError, match=re.escape("configs/world.py has no variant 'RN50'; leave it out, or choose")):
        tiny_runs.load_config("world", "RN50")


@pytest.mark.parametrize(
    "name, value, complaint",
    [
        ("steps", 0, "steps is 0; it must be at least 1"),
        ("data.crop", 100, "data.crop is 100; it must be a multiple of 32"),
        ("data.max_segments", 300, "data.max_segments is 300; the limit is 255"),
        ("data.workers", -1, "data.workers is -1; it must be at least 0"),
        ("data.jitter", (0.0, 2.0), "data.jitter is (0.0, 2.0); it must be the smallest and the largest scale"),
        ("data.jitter", (2.0, 1.0), "data.jitter is (2.0, 1.0); it must be the smallest and the largest scale"),
        ("data.jitter", (1.0,), "data.jitter is (1.0,); it must be the smallest and the largest scale"),
        ("data.world.images", 0, "data.world.images is 0; it must be at least 1"),
        ("data.world.designs", "noto", "data.world.designs is 'noto'; choose one of training, kept_back"),
        ("losses.matcher", "greedy", "losses.matcher is 'greedy'; choose one of optax, scipy"),
        ("compute_dtype", "float16", "compute_dtype is 'float16'; choose one of bfloat16"),
        ("deform_attn_precision", "fast", "deform_attn_precision is 'fast'; choose one of None, float32, bfloat16"),
        ("average", 2.0, "average is 2.0; the moving average's decay must be between 0 and 1"),
        ("eval.max_side", 10, "eval.max_side 10 is less than eval.short_side 128"),
        ("optim.learning_rate", float("nan"), "optim.learning_rate is nan; it must be at least 0"),
    ],
)
def test_numbers_that_cannot_be(name, value, complaint):
    config = tiny_runs.load_config("coco", "debug")
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=re.escape(complaint)):
        step_settings(config)


@pytest.fixture
def refusal(capfd):
    """Returns a function from the command's flags to the one sentence with which it refuses them."""

    def refusal(*flags: str) -> str:
        capfd.readouterr()
        cache = jax.config.jax_compilation_cache_dir
        assert main.main(["fcclip_jax.main", *flags]) == 2
        jax.config.update("jax_compilation_cache_dir", cache)
        (sentence,) = capfd.readouterr().err.splitlines()
        return sentence

    return refusal


def test_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "fcclip_jax.main", "--config=nowhere.py", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: the configuration nowhere.py does not exist; the project has configs/ade20k.py, configs/coco.py,"
        " configs/coco_rn50.py, configs/custom.py, configs/eval.py, configs/world.py, configs/world_clip.py, in"
        f" {ROOT}\n"
    )


def test_mistakes_on_the_command_line(tmp_path, refusal):
    coco = f"--config={tiny_runs.CONFIGS / 'coco.py'}"
    workdir = f"--workdir={tmp_path / 'run'}"
    assert refusal(coco, workdir, "--config.batchsize=3").endswith("has no 'batchsize'; did you mean 'batch_size'?")
    assert refusal(coco, workdir, "--config.zzz=3").endswith("the configuration has no 'zzz'")
    evaluation = f"--config={tiny_runs.CONFIGS / 'eval.py'}"
    assert "give a checkpoint to evaluate, such as --checkpoint=" in refusal(f"{evaluation}:ade20k", workdir)
    assert "the configuration nowhere.py does not exist" in refusal("--config=nowhere.py", workdir)
    assert "the configuration has no variant 'debg'; choose one of debug" in refusal(f"{coco}:debg", workdir)
    assert "give the run a folder" in refusal(coco)
    assert "Did you mean: workdir" in refusal(coco, "--wokdir=x")
    assert "coco_panoptic has no folder at /nowhere" in refusal(coco, workdir, "--config.data.root=/nowhere")
    pretraining = f"--config={tiny_runs.CONFIGS / 'world_clip.py'}"
    assert refusal(pretraining, "--compile_only=v5e:2x2").endswith(
        "--compile_only compiles the training of an FC-CLIP; give it a configuration other than configs/world_clip.py"
    )
    assert refusal(pretraining, workdir, "--checkpoint=world").endswith(
        "--checkpoint belongs to configs/eval.py; training starts from --config.init"
    )
    assert "the captions /nowhere do not exist" in refusal(pretraining, workdir, "--config.data.captions=/nowhere")
    assert not (tmp_path / "run").exists()


def test_the_projects_configurations_are_found_from_anywhere(tmp_path, refusal, monkeypatch):
    """Runs in a folder without a checkout, as after installation; a configuration of that name there comes first."""
    monkeypatch.chdir(tmp_path)
    folder = f"--workdir={tmp_path / 'run'}"
    assert "coco_panoptic has no folder at /nowhere" in refusal(
        "--config=configs/coco.py", folder, "--config.data.root=/nowhere"
    )
    assert "coco_panoptic has no folder at /no" in refusal(
        "--config", "configs/coco.py:RN50", folder, "--config.data.root=/no"
    )
    assert "the configuration configs/mine.py does not exist" in refusal("--config=configs/mine.py", folder)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "coco.py").write_text("def get_config():\n    raise ValueError('this is my own')\n")
    assert "this is my own" in refusal("--config=configs/coco.py", folder)


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_the_help_lists_flags_configurations_and_variants(flag, capsys):
    assert main.main(["fcclip_jax.main", "--config=configs/coco.py", flag]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  --{name}" in text for name in main.Command._fields)
    about = dict(re.findall(r"^  configs/(\w+)\.py\n((?:      .*\n?)+)", text, re.MULTILINE))
    assert sorted(about) == sorted(path.stem for path in tiny_runs.CONFIGS.glob("[!_]*.py"))
    words = {name: set(re.findall(r"\w+", lines.partition("Variants")[2])) for name, lines in about.items()}
    assert words["coco"] >= set(recipe.VARIANTS)
    assert words["eval"] >= {*BENCHMARKS, "world", "custom"}
    assert words["world"] >= {"trainable_clip"} and words["world_clip"] >= {"vit", "debug"}
    assert words["coco_rn50"] == {"none"}
    assert words["ade20k"] >= {"those", "coco"} and words["custom"] >= {"those", "coco", "debug"}


def test_a_copied_configuration_works_anywhere(tmp_path, refusal):
    copy = tmp_path / "mine.py"
    copy.write_bytes((tiny_runs.CONFIGS / "custom.py").read_bytes())
    sentence = refusal(f"--config={copy}:debug", f"--workdir={tmp_path / 'run'}")
    assert "the folder of images datasets/custom/train does not exist" in sentence


def test_mistakes_that_show_later(tmp_path, refusal):
    paths = tiny.write(tmp_path / "data", 3)
    workdir = tmp_path / "run"
    assert "checkpoint.best is 'ap'; choose one of None, pq, sq" in refusal(
        *tiny_runs.arguments(paths, workdir, **{"checkpoint.best": "ap"})
    )
    (tmp_path / "file").write_text("")
    assert "file is a file; " in refusal(*tiny_runs.arguments(paths, tmp_path / "file" / "run"))
    missing = dict.fromkeys((f"data.val.{name}" for name in ("images", "panoptic_json", "panoptic_pngs")), "/nowhere")
    sentence = refusal(*tiny_runs.arguments(paths, workdir, **{**missing, "eval.every": 3}))
    assert "the validation data cannot be opened: the folder of images /nowhere does not exist" in sentence
    assert sentence.endswith("correct data.val or data.root, or train without validation (--config.eval.every=0)")
    assert "takes 5 devices, and there are 1" in refusal(*tiny_runs.arguments(paths, workdir, **{"mesh.data": 5}))
    assert "the checkpoint /nowhere does not exist" in refusal(*tiny_runs.arguments(paths, workdir, init="/nowhere"))
    paths.edit(lambda content: content["annotations"][0]["segments_info"][0].update(category_id=77))
    assert "has the category 77, which is not in the vocabulary" in refusal(*tiny_runs.arguments(paths, workdir))
