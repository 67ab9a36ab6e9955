"""Deformable attention as a package of its own: it needs JAX only, and nothing else of this project."""

from pallas_kernels.api import ms_deform_attn

__all__ = ["ms_deform_attn"]
