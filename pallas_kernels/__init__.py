"""Deformable attention, alone: imports nothing but jax, usable without the rest of the project."""

from pallas_kernels.api import ms_deform_attn

__all__ = ["ms_deform_attn"]
