"""Annotations as benchmarks are read, made of what the data sets' archives hold: `fcclip annotate`.

One module a data set, each with `plan(root, split)`. Folders, names and values are those that the official project's
scripts write (bytedance/fc-clip, datasets/prepare_*.py), so that data prepared by either serve both.
"""
