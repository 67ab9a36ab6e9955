"""Whole runs: a resumed run is identical on any devices and after any interruption; the result is a whole model."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from convert.__main__ import main as convert
from fcclip_jax import checkpoint
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.training.checkpoints import Checkpoints
from fcclip_jax.training.run_folder import read_model
from fcclip_jax.training.step import StepMetrics, TrainState
from fcclip_jax.training.stop_requests import stop_requests
from fcclip_jax.training.train import _check_same_stream, train
from fcclip_jax.training.validate import Validator
from fcclip_jax.training.watch import check_finite
from tests.data import tiny
from tests.ports import free_address
from tests.training import tiny_runs

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> tiny.Paths:
    return tiny.write(tmp_path_factory.mktemp("data"), 6)


@pytest.fixture(scope="module")
def straight(paths, cache, tmp_path_factory) -> pathlib.Path:
    """Returns the folder of an undisturbed run of 6 steps, saved at 3 and 6 and validated at the end."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    config = tiny_runs.config(paths, **{"eval.every": 6, "eval.images": 2, "eval.pictures": 1})
    train(config, workdir)
    return workdir


def parameters(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    return dict(checkpoint.read(workdir / "final").parameters)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], within: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=within, err_msg=name)


def lines(workdir: pathlib.Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(arguments: list[str], cache: pathlib.Path, devices: int = 1, **options) -> subprocess.Popen:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "FCCLIP_JAX_CACHE": str(cache),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def wait_for_step(process: subprocess.Popen, workdir: pathlib.Path, step: int) -> None:
    for _ in range(2400):
        if any(line["step"] >= step for line in lines(workdir)):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"step {step} was never reached")


def test_what_a_run_leaves(straight):
    found = lines(straight)
    assert [line["step"] for line in found if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert {"train/cross_entropy/1", "train/dice/0", "train/gradient_norm", "train/learning_rate"} < found[0].keys()
    assert 0 <= found[-1]["pq"] <= 100
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == ["3", "6"]
    assert list((straight / "tensorboard").iterdir())
    assert json.loads((straight / "config.json").read_text())["batch_size"] == 4
    # Only the trainable parameters have changed.
    before, after = checkpoint.read(straight / "start").parameters, parameters(straight)
    for name, value in before.items():
        assert np.array_equal(value, after[name]) == name.startswith("clip."), name


def test_the_result_segments_photographs(straight):
    segmenter = Segmenter.load(straight / "final", short_side=64, max_side=96)
    segmenter.set_classes(["cat", "sky"])
    result = segmenter(np.zeros((64, 64, 3), np.uint8), tasks=("panoptic",))
    assert result.panoptic.id_map.shape == (64, 64)


def test_the_result_converts_to_the_official_format(straight, tmp_path):
    official = tmp_path / "official.safetensors"
    assert convert(["torch", "--checkpoint", str(straight / "final"), "--output", str(official)]) == 0
    from safetensors.numpy import load_file

    tensors = load_file(official)
    trained = parameters(straight)
    np.testing.assert_array_equal(
        tensors["sem_seg_head.predictor.query_feat.weight"], trained["mask_decoder.query_feat"]
    )
    np.testing.assert_allclose(tensors["criterion.empty_weight"], [1, 1, 1, 0.1], rtol=1e-7)


def test_any_of_its_checkpoints_is_a_model(straight, tmp_path, capsys):
    def model(step: str) -> pathlib.Path:
        assert convert(["run", "--run", str(straight), "--step", step, "--output", str(tmp_path / step)]) == 0
        return tmp_path / step

    assert_same(dict(checkpoint.read(model("latest")).parameters), parameters(straight))
    assert_same(dict(checkpoint.read(model("best")).parameters), parameters(straight))  # no other was measured
    said = capsys.readouterr().err
    assert "reading step 6, the latest, of the run" in said and "reading step 6, the best, of the run" in said
    third = checkpoint.read(model("3"))
    assert f"reading step 3, of the run {straight}" in capsys.readouterr().err
    assert any(not np.array_equal(value, parameters(straight)[name]) for name, value in third.parameters.items())
    assert third.training_vocabulary == checkpoint.read(straight / "final").training_vocabulary
    for arguments, complaint in (
        (["--run", str(straight), "--step", "4"], "has no checkpoint 4; it has 3, 6"),
        (["--run", str(straight), "--step", "last"], "'last' is not a step; give a number, latest or best"),
        (["--run", str(tmp_path)], "is not the folder of a training run"),
    ):
        with contextlib.suppress(SystemExit):
            assert convert(["run", *arguments, "--output", str(tmp_path / "none")]) == 2
        assert complaint in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"make one of this training run: `.* run --run "):
        checkpoint.read(straight / "checkpoints" / "6")


def test_a_run_is_converted_without_the_train_extra(straight, tmp_path):
    """Converts in a process that can import no package of the extra but absl and optax, which flax itself needs."""
    code = """
import sys
for name in ("array_record", "grain", "ml_collections", "simplejpeg", "tensorboardX", "tensorflow_datasets"):
    sys.modules[name] = None  # its import fails
from convert.__main__ import main
code = main(sys.argv[1:])
ours = {name for name in sys.modules if name.startswith("fcclip_jax.training.")}
assert ours == {"fcclip_jax.training.parameters", "fcclip_jax.training.run_folder"}, ours
sys.exit(code)
"""
    output = tmp_path / "model"
    command = [sys.executable, "-c", code, "run", "--run", str(straight), "--step", "6", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(parameters(straight), dict(checkpoint.read(output).parameters))


def test_the_averaged_parameters_are_what_counts(paths, cache, tmp_path):
    config = tiny_runs.config(paths, average=0.9)
    result = train(config, tmp_path)
    assert_same(dict(read_model(tmp_path, "latest").parameters), dict(result.parameters))
    with pytest.raises(FileNotFoundError, match="was measured, so none is the best; it has 3, 6"):
        read_model(tmp_path, "best")


def test_the_best_checkpoint_outlives_others_and_other_processes(tmp_path):
    state = TrainState(jnp.int32(0), {"a": jnp.zeros(3)}, {}, None)

    def save(scores: dict[int, float | None]) -> list[int]:
        checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=1, best="pq")
        for step, pq in scores.items():
            checkpoints.save(state._replace(step=jnp.int32(step)), {}, None if pq is None else {"pq": pq})
        checkpoints.wait()
        found = sorted(int(path.name) for path in checkpoints.folder.iterdir())
        assert found[0] == checkpoints.best
        checkpoints.close()
        return found

    assert save({1: 0.2, 2: 0.9, 3: None, 4: 0.1}) == [2, 4]
    assert save({5: float("nan"), 6: 0.3, 7: None}) == [2, 7]
    assert save({8: 0.95, 9: None}) == [8, 9]


def test_a_run_in_two_parts_is_the_same_run(paths, straight, cache, tmp_path):
    for steps in (3, 6):
        config = tiny_runs.config(paths, steps=steps)
        train(config, tmp_path)
    assert_same(parameters(tmp_path), parameters(straight))
    losses = [[line["train/loss"] for line in lines(w) if "train/loss" in line] for w in (tmp_path, straight)]
    assert losses[0] == losses[1]


def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(paths, straight, cache, tmp_path):
    workdir = tmp_path / "killed"
    arguments = tiny_runs.command(paths, workdir, **{"checkpoint.every": 1})
    process = run(arguments, cache)
    wait_for_step(process, workdir, 2)
    process.kill()
    process.communicate()
    process = run(arguments, cache)
    assert process.wait() == 0, process.communicate()[0]
    process.communicate()
    assert_same(parameters(workdir), parameters(straight))


def test_a_run_asked_to_stop_saves_and_says_so(paths, cache, tmp_path):
    workdir = tmp_path / "stopped"
    changes = {"data.workers": 2, "checkpoint.every": 10_000}
    process = run(tiny_runs.command(paths, workdir, **changes, steps=10_000), cache)
    wait_for_step(process, workdir, 2)
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert f"stop requested: step {step} is saved" in output
    for folder, workers in ((workdir, 2), (tmp_path / "undisturbed", 0)):
        config = tiny_runs.config(paths, **{**changes, "data.workers": workers, "steps": step + 2})
        train(config, folder)
    assert_same(parameters(workdir), parameters(tmp_path / "undisturbed"))


def test_ctrl_c_saves_first(paths, cache, tmp_path):
    """The terminal sends it to all processes of the run, those that load data among them."""
    workdir = tmp_path / "stopped"
    changes = {"data.workers": 2, "checkpoint.every": 10_000}
    process = run(tiny_runs.command(paths, workdir, **changes, steps=10_000), cache, start_new_session=True)
    wait_for_step(process, workdir, 2)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate()[0]
    assert process.returncode == 130 and "Traceback" not in output, output
    (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert f"stop requested: step {step} is saved" in output and "\ninterrupted\n" in output


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), stop_requests() as should_stop:
        assert not should_stop(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop(1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        pytest.fail("the second Ctrl-C did nothing")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_ctrl_c_ends_the_block_with_an_interrupt():
    with pytest.raises(KeyboardInterrupt), stop_requests() as should_stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop(1)


def test_training_in_a_thread_has_no_handlers():
    """Python allows handlers in the main thread alone."""

    def ask() -> bool:
        with stop_requests() as should_stop:
            return should_stop(1)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ask).result() is False


def test_an_evaluation_that_fails_costs_no_training(paths, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no space on the device")

    monkeypatch.setattr(Validator, "__call__", fail)
    with pytest.raises(RuntimeError, match="no space on the device"):
        train(tiny_runs.config(paths, **{"eval.every": 2, "checkpoint.every": 100, "steps": 3}), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]


def test_a_run_goes_on_with_other_devices_and_processes(paths, straight, cache, tmp_path):
    """One process with one device, then two with two each."""
    workdir = tmp_path / "moved"
    config = tiny_runs.config(paths, steps=5)
    train(config, workdir)
    ports = ["--distributed", f"--coordinator={free_address()}", "--process_count=2"]
    changes = {"mesh.data": 2, "mesh.fsdp": 2}
    commands = [tiny_runs.command(paths, workdir, *ports, f"--process_index={i}", **changes) for i in range(2)]
    processes = [run(arguments, cache, devices=2) for arguments in commands]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "on 4 cpu devices, from step 5" in outputs[0]
    assert "on 4 cpu devices" not in outputs[1]
    assert [line["step"] for line in lines(workdir) if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert lines(workdir)[-1]["train/loss"] == pytest.approx(lines(straight)[5]["train/loss"], rel=1e-5)
    # One step's sums have another order. Clipped gradients are near AdamW's eps, which keeps the difference small.
    assert_same(parameters(workdir), parameters(straight), within=1e-6)


def test_a_damaged_checkpoint_is_named(paths, straight, cache, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(straight, workdir)
    folder = workdir / "checkpoints" / "6"
    data = max((path for path in (folder / "state" / "d").iterdir()), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))
    process = run(tiny_runs.command(paths, workdir), cache)
    output = process.communicate()[0]
    assert process.returncode == 2
    assert re.search(
        r"error: the checkpoint .*checkpoints/6 is damaged .* remove that folder to resume from step 3", output
    )
    assert "Traceback" not in output
    hook = sys.unraisablehook
    for step, code in (("6", 2), ("3", 0)):
        assert convert(["run", "--run", str(workdir), "--step", step, "--output", str(tmp_path / step)]) == code
        assert (tmp_path / step).exists() == (code == 0)
        assert sys.unraisablehook is hook
    with pytest.raises(ValueError, match="remove that folder to resume from step 3"):
        train(tiny_runs.config(paths), workdir)
    assert sys.unraisablehook is hook


def test_a_run_of_the_world_keeps_its_designs(tmp_path):
    """Runs from before the designs were recorded have those of the training."""
    _check_same_stream(epath.Path(tmp_path), {"seed": 0}, {"seed": 0, "designs": "training"})
    with pytest.raises(ValueError, match="has designs training, and the configuration kept_back"):
        _check_same_stream(epath.Path(tmp_path), {"seed": 0}, {"seed": 0, "designs": "kept_back"})


def test_another_run_is_not_taken_for_this_one(paths, straight):
    for changes, complaint in (
        ({"batch_size": 2}, "has batch_size 4, and the configuration 2"),
        ({"model.head.num_queries": 7}, "a run with a different model or vocabulary"),
        ({"seed": 3}, "has seed 0, and the configuration 3"),
    ):
        config = tiny_runs.config(paths, **changes)
        with pytest.raises(ValueError, match=complaint):
            train(config, straight)


def test_what_is_not_finite_is_named():
    names = ["a", "b"]
    good = StepMetrics(
        loss=np.float32(1),
        cross_entropy=np.ones(2, np.float32),
        mask=np.ones(2, np.float32),
        dice=np.ones(2, np.float32),
        segments=np.float32(3),
        learning_rate=np.float32(0.1),
        gradient_norm=np.float32(1),
        gradient_squares=np.ones(2, np.float32),
    )
    check_finite(7, good, names)
    nan = good._replace(loss=np.float32(np.nan), mask=np.asarray([1, np.nan], np.float32))
    with pytest.raises(
        ValueError, match="stopped at step 7: the loss mask of output 1 is not finite, but the gradients"
    ):
        check_finite(7, nan, names)
    infinite = good._replace(gradient_squares=np.asarray([1, np.inf], np.float32))
    with pytest.raises(ValueError, match="the losses are finite, but the gradient of b is not"):
        check_finite(7, infinite, names)
