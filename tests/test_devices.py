"""Which device computes, and the warning about a GPU that JAX passes over."""

import types

import jax
import pytest

from fcclip_jax import devices


def test_the_cpu():
    assert devices.describe() == "the CPU"


def test_accelerators(monkeypatch):
    gpu = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    assert devices.describe() == "1 GPU (NVIDIA H100 80GB HBM3)"
    tpu = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
    monkeypatch.setattr(jax, "local_devices", lambda: [tpu] * 4)
    assert devices.describe() == "4 TPUs (TPU v5 lite)"


@pytest.mark.parametrize(
    "present, backend, chosen, warns",
    [
        (True, "cpu", None, True),
        (True, "cpu", "cpu", False),
        (True, "gpu", None, False),
        (False, "cpu", None, False),
    ],
)
def test_a_gpu_that_jax_cannot_use(monkeypatch, capsys, present, backend, chosen, warns):
    monkeypatch.setattr(devices, "has_nvidia_gpu", lambda: present)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(type(jax.config), "jax_platforms", property(lambda self: chosen), raising=False)
    devices.warn_of_unused_gpu()
    error = capsys.readouterr().err
    assert error.startswith("warning: this machine has an NVIDIA GPU that JAX cannot use") == warns
    assert ("pip install 'jax[cuda13]'" in error) == warns


@pytest.mark.parametrize(
    "script, found",
    [("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'", True), ("echo 'No devices were found'; exit 6", False), (None, False)],
)
def test_the_driver_lists_gpus(tmp_path, monkeypatch, script, found):
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: [])
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    assert devices.has_nvidia_gpu() == found


def test_a_device_file_is_enough(monkeypatch):
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    assert devices.has_nvidia_gpu()
