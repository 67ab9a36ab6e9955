"""Depthwise convolution with layer normalisation: the beginning of ConvNeXt's block."""
