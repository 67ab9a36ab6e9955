"""The operators that have kernels, as a separate package that depends on JAX only."""

from pallas_kernels.deform_attn.api import ms_deform_attn

__all__ = ["ms_deform_attn"]
