"""Inference: from a photograph to a result."""
