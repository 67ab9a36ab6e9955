"""The training loss: matching, points, and the criterion (Mask2Former's, as the official code computes it)."""
