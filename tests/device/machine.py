"""The machine that the report describes: its card, its software, and the packages that it lacks."""

import configparser
import importlib.metadata
import pathlib
import re
import subprocess
from collections.abc import Iterator

from tests.device.running import ROOT, Row

VERSIONS = re.compile(
    r"(jax|jaxlib|jax-cuda\d+-plugin|nvidia-(cudnn|cublas)(-cu\d+)?|flax|optax|numpy|torch|transformers|triton)$"
)


def device(small: bool) -> Iterator[Row]:
    """Finds the device that JAX runs on, and multiplies two matrices on it."""
    import jax
    import jax.numpy as jnp

    found = jax.devices()[0]
    side = 256 if small else 8192
    x = jnp.ones((side, side), jnp.bfloat16)
    product = jax.block_until_ready(x @ x)
    stats = found.memory_stats() or {}  # None on a CPU
    yield {
        "platform": found.platform,
        "kind": found.device_kind,
        "count": jax.device_count(),
        "memory GiB": stats["bytes_limit"] / 2**30 if "bytes_limit" in stats else None,
        "product is right": bool(product[0, 0] == side),
        "PJRT": found.client.platform_version.splitlines()[0],
    }


def describe_machine() -> dict[str, str | None]:
    """Returns the card and its driver, versions, and the commit, each None where it is not known. Starts no JAX."""
    card = output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    packages = sorted(
        (name.lower(), distribution.version)
        for distribution in importlib.metadata.distributions()
        if (name := distribution.metadata["Name"]) and VERSIONS.match(name.lower())
    )
    changed = output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    commit = output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    return {
        "card": card,
        "commit": commit and commit + (" with changes" if changed else ""),
        **dict(packages),
    }


def output(*command: str) -> str | None:
    """Returns what a command prints, or None if it fails or does not exist."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def missing_packages(setup: pathlib.Path = ROOT / "setup.cfg") -> list[str]:
    """Returns what the report needs and this environment lacks, as pip reads it.

    The report needs what inference and training require, and the baseline.
    """
    config = configparser.ConfigParser()
    config.read(setup)
    extras = config["options.extras_require"]
    lines = [
        line.split(";")[0].strip()
        for line in f"{config['options']['install_requires']}\n{extras['train']}".splitlines()
    ]
    lines += [line for line in extras["test"].splitlines() if line.startswith("transformers")]
    lines += [line for line in extras["convert"].splitlines() if line.startswith("torch")]
    return [line for line in lines if (name := re.match(r"[\w.-]+", line)) and not installed(name[0])]


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
