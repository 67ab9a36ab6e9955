"""Weight conversion between PyTorch checkpoints and this project's, as strict tables."""
