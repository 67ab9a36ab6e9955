"""A benchmark from a folder of annotated images to a report."""
