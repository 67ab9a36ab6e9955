"""Checks the order of imports: setup.cfg lists the layers, import-linter compares the imports with them."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("configs", "convert", "fcclip_jax", "pallas_kernels")


def lint(folder: pathlib.Path) -> subprocess.CompletedProcess:
    """Runs import-linter on all imports of a checkout, including those inside functions."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    return subprocess.run([sys.executable, "-c", code], check=False, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path) -> pathlib.Path:
    """Returns a copy of the packages to modify."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def test_imports_point_down_and_never_in_circles():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 3 kept, 0 broken." in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("fcclip_jax/text/vocabulary.py", "import fcclip_jax.inference.segmenter", "Modules of fcclip_jax BROKEN"),
        ("fcclip_jax/evaluation/log.py", "from fcclip_jax.training import optim", "Modules of fcclip_jax BROKEN"),
        ("pallas_kernels/lowering.py", "import fcclip_jax.conventions", "Packages BROKEN"),
        ("fcclip_jax/metrics/panoptic.py", "import convert.rules", "Packages BROKEN"),
        ("fcclip_jax/models/layers.py", "import fcclip_jax.models.fcclip", "No cycle inside a package BROKEN"),
    ],
)
def test_an_import_that_points_up_is_noticed(checkout, file, line, broken):
    """Adds a lazy import, inside a function that is never called."""
    with (checkout / file).open("a") as module:
        module.write(f"\n\ndef late():\n    {line}\n")
    done = lint(checkout)
    assert done.returncode == 1 and broken in done.stdout, done.stdout + done.stderr


def test_a_new_module_needs_a_layer(checkout):
    (checkout / "fcclip_jax" / "novelty.py").write_text("")
    done = lint(checkout)
    assert done.returncode == 1 and "novelty" in done.stdout, done.stdout + done.stderr
