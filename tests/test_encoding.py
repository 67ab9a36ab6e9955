"""Text files are read and written as UTF-8, whatever the locale."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_every_text_file_has_an_encoding():
    """Ruff's rule is a preview, so pyproject.toml cannot select it without all other previews."""
    pytest.importorskip("ruff", reason="ruff finds the calls (extra: test)")
    folders = ["fcclip_jax", "convert", "configs", "pallas_kernels"]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--preview", "--select", "PLW1514", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
