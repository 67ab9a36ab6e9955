"""Compares this model with arrays recorded from the official PyTorch code: `python -m tests.parity DIR`.

A pair is `X_eval.json` (the whole configuration) and `X_eval.npz` (arrays as PyTorch holds them), with the checkpoint's
keys and shapes in `manifest_X.json`. `semantic_only` and `batch_mixed` hold more photographs for the models of
`small_convnext_eval` and `small_rn_eval`. Nothing in the folder is executed.

Final probabilities, masks and maps come from the program that a user runs: photographs in a batch, in a bucket larger
than any of them, from pixels to maps. The stages in between come from the model's own modules, called one by one.
"""
