"""Deformable attention as a separate package, which depends on JAX only."""

from pallas_kernels.api import ms_deform_attn

__all__ = ["ms_deform_attn"]
