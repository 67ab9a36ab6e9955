"""The cache folder, and the compilation of programs: kept between runs, and timed."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import jax


def cache_dir() -> pathlib.Path:
    """Returns $FCCLIP_JAX_CACHE, or fcclip_jax in the user's cache folder. Everything in it can be deleted safely."""
    chosen = os.environ.get("FCCLIP_JAX_CACHE")
    if chosen:
        return pathlib.Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base).expanduser() / "fcclip_jax"


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache, unless the user has set its folder or turned it off already.

    By default JAX also keeps the results of XLA's autotuning on GPUs there, which new programs with known parts use.
    """
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))


@contextlib.contextmanager
def compile_times() -> Iterator[list[float]]:
    """Yields a list that receives the seconds of each XLA compilation until the block ends."""
    times: list[float] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            times.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield times
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
