"""Evaluates a model on a benchmark: from a folder of annotated images to a report."""
