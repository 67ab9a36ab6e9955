"""The network, one file per part of the picture in the README."""
