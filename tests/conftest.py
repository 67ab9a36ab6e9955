"""Strict dtype and rank promotion in every test: an accidental widening or broadcast is an error."""

import os
import pathlib

# libtpu is installed for its compiler only: without this JAX would search for a TPU first. Set it to test elsewhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

MANY_MAPS = 20_000
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Returns the folder of the official code's full arrays, next to the checkout; skips the test without it."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"no golden arrays at {SHARED}: they are not part of the repository")
    return SHARED


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Drops compiled programs after a file of tests, if there are many.

    Each takes about eleven of the 65,530 memory maps that Linux allows a process; without one, LLVM ends the process.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
