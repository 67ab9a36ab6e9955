"""Checkpoints: a directory that describes itself, so that loading one needs no configuration.

    fcclip.json   describes the weights: sizes, the vocabulary that they were trained with, their origin,
                  checksums
    params/       orbax: a flat dictionary of arrays by `models.building.named_variables`

A `clip` checkpoint contains the two CLIP towers alone, an `fcclip` checkpoint the whole model; names are the same in
both. Arrays are stored as float32 or, in half the space, as float16; they are float32 once read.
"""

from fcclip_jax.checkpoint.contents import Checkpoint, Origin, text_fingerprint
from fcclip_jax.checkpoint.directory import Loaded, check_free, find, has_checksums, load, read, resolve, save
from fcclip_jax.checkpoint.record import convert_command

__all__ = [
    "Checkpoint",
    "Loaded",
    "Origin",
    "check_free",
    "convert_command",
    "find",
    "has_checksums",
    "load",
    "read",
    "resolve",
    "save",
    "text_fingerprint",
]
