"""Converts weights between PyTorch checkpoints and this project's, by strict tables."""

PROG = "python -m convert" if __name__ == "convert" else "fcclip-convert"
"""The command that runs this package: from a checkout it is `convert`, installed it is `fcclip_jax.convert`."""
