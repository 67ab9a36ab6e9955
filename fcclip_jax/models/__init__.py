"""The network, with one file for each part of the picture in the README."""
