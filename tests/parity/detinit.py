"""The weights behind the official arrays, which any program can draw again from a key and a shape."""

import math
import zlib

import numpy as np

_PREDICTOR = "sem_seg_head.predictor."


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws the value of one key of the official state dict: normal numbers, seeded by the key, scaled by its kind."""
    leaf = key.split(".")[-1]
    constants = {
        "backbone.clip_model.logit_scale": 4.7,
        "sem_seg_head.predictor.logit_scale": math.log(1 / 0.07),
    }
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if key == "criterion.empty_weight":
        return np.append(np.ones(shape[0] - 1), 0.1).astype(np.float32)
    if key in constants:
        return np.full(shape, constants[key], np.float32)
    offset, scale = _offset_and_scale(key, leaf, shape)
    drawn = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if leaf == "running_var":
        drawn = np.abs(drawn)
    return np.asarray(offset + scale * drawn, np.float32)


def _offset_and_scale(key: str, leaf: str, shape: tuple[int, ...]) -> tuple[float, float]:
    named = {"running_mean": (0, 0.1), "running_var": (1, 0.2), "gamma": (0.3, 0.05)}
    if leaf in named:
        return named[leaf]
    if len(shape) == 1:
        if leaf == "weight":
            return 1, 0.1
        special = {"sampling_offsets.bias": 1.5, "pixel_decoder.mask_features.bias": 0.2}
        return 0, next((scale for suffix, scale in special.items() if key.endswith(suffix)), 0.05)
    embeddings = tuple(f"{name}.weight" for name in ("query_feat", "query_embed", "level_embed", "void_embedding"))
    if leaf == "level_embed" or key.endswith(embeddings):
        return 0, 1
    if key.endswith("token_embedding.weight"):
        return 0, 0.2
    if leaf == "positional_embedding":
        return 0, 0.05
    if leaf == "text_projection":
        return 0, 1 / math.sqrt(shape[0])
    gain = 1.2
    if key.endswith("sampling_offsets.weight"):
        gain = 0.5
    elif "predictor.mask_embed.layers." in key or (key.startswith(_PREDICTOR) and leaf == "in_proj_weight"):
        gain = 1.6
    elif key.startswith(_PREDICTOR) and key.endswith(("out_proj.weight", "linear2.weight")):
        gain = 0.2
    return 0, gain / math.sqrt(math.prod(shape[1:]))
