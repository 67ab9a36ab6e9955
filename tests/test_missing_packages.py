"""What the extras install may be missing: one sentence with the line that installs it, from every command."""

import configparser
import importlib.metadata
import pathlib
import subprocess
import sys

import pytest

from fcclip_jax import command_line
from tests.data import tiny

ROOT = pathlib.Path(__file__).parents[1]
OPTIONAL = [module for modules in command_line.EXTRAS.values() for module in modules]

HIDE = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
"""
ENTRIES = {
    "fcclip_jax.main": "from fcclip_jax import main; sys.exit(main.main(['main', *sys.argv[1:]]))",
    "fcclip": "from fcclip_jax import cli; sys.exit(cli.main(sys.argv[1:]))",
    "clusters": "from fcclip_jax.evaluation import clusters; sys.exit(clusters.main(sys.argv[1:]))",
    "convert": "import convert.__main__; sys.exit(convert.__main__.main(sys.argv[1:]))",
}


def run(hidden: list[str], entry: str, *arguments: object) -> subprocess.CompletedProcess:
    """Runs a command in an interpreter that has none of the hidden packages."""
    code = HIDE.format(hidden=hidden) + ENTRIES[entry]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_extras_are_those_of_the_setup():
    """Each module of the table belongs to a distribution that its extra lists, and no distribution is left out."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    distributions = importlib.metadata.packages_distributions()
    for extra, modules in command_line.EXTRAS.items():
        lines = [line for line in setup["options.extras_require"][extra].splitlines() if line]
        listed = {line.partition(">")[0].replace("-", "_") for line in lines}
        found = {distributions.get(module, [module])[0].replace("-", "_").lower() for module in modules}
        assert found == {name.lower() for name in listed}


def test_the_help_of_training_needs_no_extra_package():
    done = run([*OPTIONAL, "jax", "flax", "numpy"], "fcclip_jax.main", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--config=FILE[:VARIANT]" in done.stdout


@pytest.mark.parametrize("module", ["absl", "ml_collections", "optax", "simplejpeg", "grain", "tensorboardX"])
def test_training_without_one_of_its_packages(module, tmp_path):
    done = run([module], "fcclip_jax.main", "--config=configs/coco.py:debug", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: this command needs {module}, which is not installed: pip install 'fcclip-jax[train]'\n"
    )


def test_evaluation_without_any(tmp_path):
    arguments = ("--config=configs/eval.py:world", "--checkpoint=world", f"--workdir={tmp_path / 'run'}")
    done = run(OPTIONAL, "fcclip_jax.main", *arguments)
    assert done.returncode == 2
    assert done.stderr == "error: this command needs absl, which is not installed: pip install 'fcclip-jax[train]'\n"


def test_a_configuration_that_imports_another_package(tmp_path):
    (tmp_path / "mine.py").write_text("import nowhere_to_be_found\n\n\ndef get_config(): ...\n")
    done = run([], "fcclip_jax.main", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr == (
        "error: this command needs nowhere_to_be_found, which is not installed: pip install nowhere_to_be_found\n"
    )


@pytest.mark.parametrize(
    "module, arguments, extra",
    [
        ("tensorflow_datasets", ["prepare", "custom", "--images", "{0}", "--json", "{1}", "--pngs", "{2}"], "train"),
        ("array_record", ["prepare", "custom", "--images", "{0}", "--json", "{1}", "--pngs", "{2}"], "train"),
        ("simplejpeg", ["prepare", "world", "--train-images", "1", "--val-images", "1"], "train"),
        ("gradio", ["demo"], "demo"),
        ("filelock", ["weights", "get", "fcclip_rn50"], "weights"),
    ],
)
def test_commands_without_their_packages(module, arguments, extra, tmp_path, monkeypatch):
    monkeypatch.setenv("FCCLIP_JAX_CACHE", str(tmp_path / "cache"))
    paths = tiny.write(tmp_path / "data", 1)
    arguments = [argument.format(*paths) for argument in arguments]
    arguments += ["--output", tmp_path / "prepared"] if arguments[0] == "prepare" else []
    done = run([module], "fcclip", *arguments)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert f" needs {module}, which is not installed: pip install 'fcclip-jax[{extra}]'" in sentence


def test_what_the_notebook_imports_needs_no_extra_package():
    hidden = [module for module in OPTIONAL if module not in ("absl", "optax")]  # which orbax and flax need
    done = run(hidden, "clusters", "--help")
    assert done.returncode == 0, done.stderr


def test_conversion_without_any(tmp_path):
    options = ["--model", "RN50", "--output", tmp_path / "clip"]
    hidden = [module for module in OPTIONAL if module not in ("absl", "optax")]  # which orbax and flax need
    done = run(hidden, "convert", "openclip", "--pretrained", "openai", *options)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: openai, which is not a file but a tag of OpenCLIP, needs open_clip, which is not"
    )
    assert done.stderr.endswith(": pip install 'fcclip-jax[convert]'\n")


def test_a_checkout_that_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert str(command_line.missing_package("optax", "training", "rest")) == (
        "training needs optax, which is not installed: pip install '.[train]', or rest"
    )


def test_a_module_of_the_project_itself_is_a_fault():
    def command():
        raise ModuleNotFoundError("No module named 'fcclip_jax.lost'", name="fcclip_jax.lost")

    with pytest.raises(ModuleNotFoundError):
        command_line.run(command, memory_advice="")
