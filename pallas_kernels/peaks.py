"""The peak rates of devices."""

from typing import NamedTuple


class Peak(NamedTuple):
    """A device's highest rates, per second."""

    memory_bytes: float
    bfloat16_flops: float
    float32_flops: float


# TPUs: cloud.google.com/tpu/docs/v5e, v5p, v6e and tpu7x; a TPU7x chip is two devices, so these are half of its rates.
# Their float32 peak is not published: a sixth of bfloat16's, since an exact float32 product is six bfloat16 products.
# GPUs: NVIDIA's data sheets, tensor cores without sparsity for bfloat16, plain cores for float32; a T4 has no bfloat16,
# so its float32 rate stands for both.
PEAKS = {
    "TPU v5 lite": Peak(819e9, 197e12, 197e12 / 6),
    "TPU v5": Peak(2765e9, 459e12, 459e12 / 6),
    "TPU v5p": Peak(2765e9, 459e12, 459e12 / 6),
    "TPU v6 lite": Peak(1638e9, 918e12, 918e12 / 6),
    "TPU7x": Peak(7380e9 / 2, 2307e12 / 2, 2307e12 / 2 / 6),
    "NVIDIA A100-SXM4-40GB": Peak(1555e9, 312e12, 19.5e12),
    "NVIDIA A100-SXM4-80GB": Peak(2039e9, 312e12, 19.5e12),
    "NVIDIA A100 80GB PCIe": Peak(1935e9, 312e12, 19.5e12),
    "NVIDIA H100 80GB HBM3": Peak(3350e9, 989e12, 67e12),
    "NVIDIA H100 PCIe": Peak(2000e9, 756e12, 51e12),
    "NVIDIA H200": Peak(4800e9, 989e12, 67e12),
    "NVIDIA L4": Peak(300e9, 121e12, 30.3e12),
    "Tesla T4": Peak(320e9, 8.1e12, 8.1e12),
}
"""By jax.Device.device_kind."""
