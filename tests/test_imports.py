"""Imports load only what is used: no heavy packages, and --help runs without JAX."""

import configparser
import importlib
import importlib.metadata
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import fcclip_jax
from fcclip_jax.inference.results import Result
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.text.vocabulary import Vocabulary

HEAVY = ("torch", "tensorflow", "open_clip", "cv2", "matplotlib", "supervision")
DATA = "fcclip_jax.data.shards, fcclip_jax.data.prepared, fcclip_jax.data.pipeline"
JAX = ("jax", "flax", "numpy")


def imported(code: str, packages: tuple[str, ...]) -> set[str]:
    """Returns which of the packages a new interpreter has imported after running the code."""
    code = (
        f"import sys\n{code}\nprint('\\n', *sorted({set(packages)!r} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("fcclip_jax", (*HEAVY, *JAX)),
        ("fcclip_jax.inference.segmenter", HEAVY),
        ("convert, convert.__main__", HEAVY),
        (DATA, ("torch", "tensorflow", "open_clip")),
        ("pallas_kernels", ("fcclip_jax",)),
    ],
)
def test_heavy_packages_stay_out(modules, absent):
    assert imported(f"import {modules}", absent) == set()


def test_help_and_typing_errors_need_no_jax():
    code = """
import fcclip_jax.cli
for arguments in ([], ["--help"], *([name, "--help"] for name in fcclip_jax.cli.COMMANDS), ["segment", "--colour"]):
    try:
        fcclip_jax.cli.main(arguments)
    except SystemExit as stop:
        assert stop.code == (0 if "--help" in arguments else 2)
    else:
        raise AssertionError(arguments)
"""
    assert imported(code, (*HEAVY, *JAX)) == set()


def test_the_package_offers_its_public_classes():
    assert fcclip_jax.Segmenter is Segmenter
    assert fcclip_jax.Result is Result
    assert fcclip_jax.Vocabulary is Vocabulary
    assert {"Segmenter", "Result", "Vocabulary"} == set(fcclip_jax.__all__) <= set(dir(fcclip_jax))
    with pytest.raises(AttributeError, match="module 'fcclip_jax' has no attribute 'Segmentor'"):
        fcclip_jax.Segmentor  # noqa: B018


def test_every_module_is_imported():
    """Whatever a commit forgets fails here first."""
    import convert
    import fcclip_jax
    import pallas_kernels

    names = [
        module.name
        for package in (convert, fcclip_jax, pallas_kernels)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    assert len(names) > 100
    for name in names:
        importlib.import_module(name)


def test_every_package_is_installed():
    """setup.cfg lists the packages one by one."""
    root = pathlib.Path(__file__).parents[1]
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    folders = {
        path.parent.relative_to(root)
        for name in ("fcclip_jax", "pallas_kernels")
        for path in (root / name).rglob("__init__.py")
    }
    found = {".".join(folder.parts) for folder in folders} | {"fcclip_jax.configs", "fcclip_jax.convert"}
    assert listed == found


def test_the_version_of_a_checkout_that_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert fcclip_jax.__version__ == "unknown"
