"""Contrastive pre-training of a CLIP on images with captions."""
