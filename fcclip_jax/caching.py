"""Where things that can be made again are kept between runs."""

import os
import pathlib

import jax


def cache_dir() -> pathlib.Path:
    """$FCCLIP_JAX_CACHE, or fcclip_jax in the user's cache folder."""
    chosen = os.environ.get("FCCLIP_JAX_CACHE")
    if chosen:
        return pathlib.Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base).expanduser() / "fcclip_jax"


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache, unless the user has pointed it elsewhere or off already."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
