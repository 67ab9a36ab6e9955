"""The models that the parts run, with random weights, and the precisions that they run in."""

import jax

from fcclip_jax import caching
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.inference.timing import MODEL
from fcclip_jax.models.descriptions import CLIP_MODELS, SMALL, ModelDescription, fcclip_description
from fcclip_jax.models.fcclip import FCCLIP
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.text.vocabulary import Vocabulary

CLASSES = "coco_panoptic"
"""133 classes."""


def description(small: bool) -> ModelDescription:
    return SMALL if small else fcclip_description(CLIP_MODELS[MODEL])


def precisions() -> list[str]:
    """Returns the precisions of the device, the fastest first."""
    return [name for name in ("bfloat16", "tf32", "float32") if name != "tf32" or jax.default_backend() == "gpu"]


def segmenter(model: FCCLIP, small: bool, **options) -> Segmenter:
    """Returns a Segmenter of COCO's panoptic classes. Later parts read their text embeddings from the cache."""
    caching.keep_compiled_programs()
    vocabulary = Vocabulary.load(CLASSES)
    made = Segmenter(
        model, vocabulary, fingerprint=f"random, small {small}", cache_dir=caching.cache_dir() / "text", **options
    )
    made.set_classes(vocabulary)
    return made


def random(small: bool) -> FCCLIP:
    return random_model(description(small))
