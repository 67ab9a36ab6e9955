"""What importing costs: a user of the network alone pays for nothing else."""

import subprocess
import sys

import pytest

ABSENT = {"torch", "tensorflow", "open_clip", "cv2", "matplotlib", "supervision"}


@pytest.mark.parametrize(
    "module", ["fcclip_jax", "fcclip_jax.inference.segmenter", "fcclip_jax.cli", "convert", "convert.__main__"]
)
def test_heavy_packages_stay_out(module):
    code = f"import sys, {module}; print(*sorted({ABSENT!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_kernels_stand_alone():
    code = "import sys, pallas_kernels; print(*(name for name in sys.modules if name.split('.')[0] == 'fcclip_jax'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_needs_no_jax():
    code = "import sys, fcclip_jax.cli; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
