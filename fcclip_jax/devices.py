"""Which device JAX computes on, and whether it passes over a GPU of the machine."""

import glob
import shutil
import subprocess
import sys


def describe() -> str:
    """Names the devices of this process, such as "1 GPU (NVIDIA H100 80GB HBM3)" or "the CPU"."""
    import jax  # this module is imported before the arguments are parsed

    local = jax.local_devices()
    if local[0].platform == "cpu":
        return "the CPU"
    kind = local[0].platform.upper()
    return f"{len(local)} {kind}{'s' * (len(local) > 1)} ({local[0].device_kind})"


def warn_of_unused_gpu() -> None:
    """Warns on stderr if the machine has an NVIDIA GPU that JAX cannot use, unless the CPU was chosen."""
    import jax

    if jax.default_backend() != "cpu" or jax.config.jax_platforms or not has_nvidia_gpu():
        return
    print(
        "warning: this machine has an NVIDIA GPU that JAX cannot use, so that the CPU computes: pip install 'jax[cuda13]', or 'jax[cuda12]'"
        " for an older driver; JAX_PLATFORMS=cpu chooses the CPU",
        file=sys.stderr,
    )


def has_nvidia_gpu() -> bool:
    """Returns whether NVIDIA's driver shows a GPU."""
    if glob.glob("/dev/nvidia[0-9]*"):
        return True
    tool = shutil.which("nvidia-smi")  # also on Windows, and in its subsystem for Linux
    if tool is None:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU 0" in listed.stdout
