"""Makes the annotations that benchmarks are evaluated on from the datasets' archives: `fcclip annotate`.

Each dataset has a module with `plan(root, split)`. Folders, names and values are those of the official project's scripts
(bytedance/fc-clip, datasets/prepare_*.py), so data prepared by either can be used with both.
"""
