"""The cache folder, and the times of compilations."""

import pathlib

import jax
import jax.numpy as jnp

from fcclip_jax import caching


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FCCLIP_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert caching.cache_dir() == tmp_path / ".cache" / "fcclip_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert caching.cache_dir() == pathlib.Path("/caches/fcclip_jax")
    monkeypatch.setenv("FCCLIP_JAX_CACHE", "~/mine")
    assert caching.cache_dir() == tmp_path / "mine"


def test_compiled_programs_are_kept_where_the_user_chose(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("FCCLIP_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    try:
        for chosen, expected in ((None, str(tmp_path / "xla")), ("/mine", "/mine")):
            jax.config.update("jax_compilation_cache_dir", chosen)
            caching.keep_compiled_programs()
            assert jax.config.jax_compilation_cache_dir == expected
        # Only JAX's default keeps autotuning results, which the cache folder promises.
        assert jax.config.jax_persistent_cache_enable_xla_caches == "xla_gpu_per_fusion_autotune_cache_dir"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_compilations_are_timed_until_the_block_ends():
    number = jnp.float32(2)
    with caching.compile_times() as times:
        jax.jit(lambda x: x * 3.25)(number)
        assert len(times) == 1 and times[0] > 0
        jax.jit(lambda x: x * 4.25)(number)
        assert len(times) == 2
    jax.jit(lambda x: x * 5.25)(number)
    assert len(times) == 2
