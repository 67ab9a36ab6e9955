"""FC-CLIP in JAX: open-vocabulary segmentation with a single frozen convolutional CLIP (Yu et al., NeurIPS 2023)."""
