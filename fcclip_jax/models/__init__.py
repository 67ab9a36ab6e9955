"""The network, with one file for each part of the diagram in the README."""
