"""A miniature world of emoji, in which training from a pre-trained CLIP to open-vocabulary segmentation takes minutes."""
