"""CLIPs that classify masks or are looked at, without the rest of an FC-CLIP."""

from typing import NamedTuple

import jax

from fcclip_jax import caching, checkpoint, weights
from fcclip_jax.conventions import RANDOM_WEIGHTS
from fcclip_jax.inference.sweep import SecondClip
from fcclip_jax.models.building import abstract_model, with_values
from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.models.fcclip import CLIP
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.text.embeddings import TextEncoder
from fcclip_jax.text.known_words import check_known
from fcclip_jax.text.vocabulary import Vocabulary


class OpenedClip(NamedTuple):
    """A CLIP that classifies the masks of another model."""

    clip: CLIP
    text_fingerprint: str
    known_words: tuple[str, ...] | None
    path: str

    def classifier(self, vocabulary: Vocabulary, training_vocabulary: Vocabulary) -> SecondClip:
        """Embeds a vocabulary for the sweep.

        Raises:
            ValueError: this CLIP does not know a word.
        """
        check_known(vocabulary, self.known_words, listed=self.path)
        cache_dir = caching.cache_dir() / "text"
        encoder = TextEncoder(self.clip.text, fingerprint=self.text_fingerprint, cache_dir=cache_dir)
        text = encoder.classifier(vocabulary, training_vocabulary)
        return SecondClip(self.clip.image, text, self.clip.logit_scale[...])


def open_clip(path: str) -> OpenedClip:
    """Loads the CLIP of a checkpoint, which may hold no more than that, or makes a random one with another seed than an FC-CLIP's.

    Raises:
        FileNotFoundError, ValueError, OSError: as `weights.find` and `checkpoint.read`.
    """
    if path == RANDOM_WEIGHTS:
        return OpenedClip(random_model(SMALL, 1).clip, "random 1", None, path)
    contents = checkpoint.read(weights.find(path))
    clip = with_values(abstract_model(contents.description), jax.device_put(dict(contents.parameters))).clip
    return OpenedClip(clip, contents.text_sha256, contents.known_words, path)
