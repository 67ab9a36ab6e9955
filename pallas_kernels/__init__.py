"""The operators that have kernels, as a separate package that depends on JAX only."""

from pallas_kernels.deform_attn.api import ms_deform_attn
from pallas_kernels.depthwise.api import depthwise_norm

__all__ = ["depthwise_norm", "ms_deform_attn"]
