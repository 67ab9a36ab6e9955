"""What the tests of training share."""

import pathlib
from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Iterator[pathlib.Path]:
    """Compiles programs once for all runs of a file."""
    folder = tmp_path_factory.mktemp("cache")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)
