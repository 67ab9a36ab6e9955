"""The CLIP of the miniature world: a small ConvNeXt CLIP, as OpenCLIP's, with embeddings of the tokens that occur."""

import dataclasses

import numpy as np

from fcclip_jax.conventions import END_ID, START_ID
from fcclip_jax.models.descriptions import (
    ClipDescription,
    ConvNeXtDescription,
    DefaultsDescription,
    EnsembleDescription,
    TextDescription,
    ViTDescription,
)
from fcclip_jax.text.prompts import PROMPT_TEMPLATES
from fcclip_jax.text.tokenizer import tokenize
from fcclip_jax.world import words

CONTEXT_LENGTH = 32
"""The limit of a text's tokens; three things on two backgrounds need 29."""

DEFAULTS = DefaultsDescription(
    short_side=256, max_side=512, overlap_threshold=0.6, instance_threshold=0.3, panoptic_void_trust=0.5
)
"""How an FC-CLIP of the world segments. Images keep the scenes' size. A short training leaves several queries on some
objects, which hide a part of each other, and its scores are lower than the official model's. OVRCOAT's weight of CLIP's
certainty finds many of the unseen things that the head takes for void."""
ENSEMBLE = EnsembleDescription(alpha=0.5, beta=0.9)
"""Not the paper's 0.4 and 0.8: this CLIP names its few words better than the head does. Chosen, like the thresholds, on 300
scenes of the split val with two heads."""


def clip_description() -> ClipDescription:
    """Returns the sizes of both towers. Late stages have small kernels: their features then stay local."""
    tokens = token_ids()
    return ClipDescription(
        image=ConvNeXtDescription(
            depths=(1, 1, 3, 1),
            dims=(32, 64, 128, 256),
            kernel_sizes=(5, 5, 3, 1),
            embed_dim=128,
            head="linear",
        ),
        text=TextDescription(
            width=96,
            heads=3,
            layers=2,
            embed_dim=128,
            quick_gelu=False,
            context_length=CONTEXT_LENGTH,
            vocab_size=len(tokens),
            token_ids=tokens,
        ),
    )


def vit_description() -> ClipDescription:
    """Returns the sizes of a CLIP with a vision transformer instead, with as many parameters and about the same cost.

    On pictures of 64 pixels, the ConvNeXt multiplies 15 million times and this trunk 19 million.
    """
    trunk = ViTDescription(width=144, layers=4, heads=3, image_size=128, embed_dim=128)
    return dataclasses.replace(clip_description(), image=trunk)


def token_ids() -> tuple[int, ...]:
    """Returns CLIP's ids of all tokens in the world's captions and prompts, sorted."""
    texts = [template.format(word) for template in PROMPT_TEMPLATES for word in words.WORDS]
    texts.append("a cat, a dog and a cow on grass and snow.")
    return tuple(int(token) for token in np.unique(np.append(tokenize(texts), [0, START_ID, END_ID])))
