"""Panoptic quality, mIoU and average precision, each as the official evaluators compute it."""
