"""Converts weights between PyTorch checkpoints and this project's, by strict tables."""

PROG = "python -m convert" if __name__ == "convert" else "fcclip-convert"
"""The command that runs this package, which is `convert` in a checkout and `fcclip_jax.convert` when installed."""
