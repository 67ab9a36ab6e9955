"""From words to the classifier that the network reads: prompts through CLIP's text tower, once, then from a disk cache."""

import hashlib
import io
import logging
import pathlib

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from fcclip_jax import files
from fcclip_jax.models.clip_text import TextTower
from fcclip_jax.structs import TextClassifier
from fcclip_jax.text.tokenizer import tokenize
from fcclip_jax.text.vocabulary import PROMPT_TEMPLATES, Vocabulary

log = logging.getLogger(__name__)

BATCH = 64

CLASS_BUCKETS = (2048, 8192, 32768, 131072)
"""Text rows and classes. The first holds all shipped vocabularies: padded classes cost next to nothing."""

TEXT_LENGTHS = (16, 32, 77)
"""Tokens of a prompt: attention is causal, so the text tower stops at the end of the longest."""


class TextEncoder:
    """The text tower, ready to embed prompts; few compiled programs, whatever the prompts."""

    def __init__(self, tower: TextTower, *, fingerprint: str, cache_dir: pathlib.Path | None):
        """`fingerprint` names the tower's weights; `cache_dir` keeps embeddings between runs, None does not."""
        graphdef, self._state = nnx.split(tower)
        self._embed_dim = tower.text_projection.shape[1]
        self._context_length = tower.positional_embedding.shape[0]

        def run(state: nnx.State, tokens: Int[Array, "B T"]) -> Float[Array, "B C"]:
            # In float32 everywhere: what is kept on disk serves every platform.
            with jax.default_matmul_precision("highest"):
                return nnx.merge(graphdef, state)(tokens)

        self._run = jax.jit(run)
        self._fingerprint, self._cache_dir = fingerprint, cache_dir

    def classifier(self, vocabulary: Vocabulary, training: Vocabulary) -> TextClassifier:
        """The vocabulary as padded arrays, for a model trained on the classes of `training`."""
        return pad_classifier(self.embed(vocabulary), vocabulary, vocabulary.seen_by(training))

    def embed(self, vocabulary: Vocabulary) -> Float[np.ndarray, "T C"]:
        """One normalised row a synonym, from the cache if it has it."""
        if self._cache_dir is None:
            return aggregate(self.encode(vocabulary.prompts()))
        key = hashlib.sha256(f"{self._fingerprint} {vocabulary.prompts_sha256}".encode()).hexdigest()
        path = self._cache_dir / f"{key}.npy"
        shape = (len(vocabulary.groups), self._embed_dim)
        cached = _read_cached(path, shape)
        if cached is None:
            cached = aggregate(self.encode(vocabulary.prompts()))
            _write_cached(path, cached)
        return cached

    def encode(self, prompts: list[str]) -> Float[np.ndarray, "N C"]:
        """The tower's features, not normalised, in the order of the prompts."""
        tokens = tokenize(prompts, self._context_length)
        lengths = np.argmax(tokens, axis=1) + 1
        features = np.empty((len(prompts), self._embed_dim), np.float32)
        with tqdm(total=len(prompts), desc="reading prompts", unit="", leave=False, disable=None) as progress:
            limits = sorted({min(limit, self._context_length) for limit in TEXT_LENGTHS} | {self._context_length})
            for shortest, longest in zip([0, *limits], limits, strict=False):
                rows = np.flatnonzero((lengths > shortest) & (lengths <= longest))
                for start in range(0, len(rows), BATCH):
                    batch = rows[start : start + BATCH]
                    filled = np.resize(batch, BATCH)
                    result = self._run(self._state, tokens[filled, :longest])
                    features[batch] = np.asarray(result)[: len(batch)]
                    progress.update(len(batch))
        return features


def aggregate(features: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "T C"]:
    """Prompt features to one row a synonym: normalise, average over the templates, normalise again (fcclip.py)."""
    by_template = _normalize(features).reshape(-1, len(PROMPT_TEMPLATES), features.shape[1])
    return _normalize(by_template.mean(axis=1))


def pad_classifier(
    embeddings: Float[np.ndarray, "T C"], vocabulary: Vocabulary, seen: tuple[bool, ...]
) -> TextClassifier:
    """Rows and classes padded to their bucket."""
    rows, count = len(embeddings), len(vocabulary.classes)
    bucket = class_bucket(rows)
    return TextClassifier(
        embeddings=np.pad(embeddings, ((0, bucket - rows), (0, 0))),
        groups=np.pad(np.asarray(vocabulary.groups, np.int32), (0, bucket - rows), constant_values=bucket),
        seen=np.pad(np.asarray(seen, bool), (0, bucket - count)),
        num_classes=np.asarray(count, np.int32),
    )


def class_bucket(count: int) -> int:
    """How many text rows or classes to pad `count` to.

    Raises:
        ValueError: there are more than the largest bucket holds.
    """
    fitting = [bucket for bucket in CLASS_BUCKETS if bucket >= count]
    if not fitting:
        raise ValueError(f"{count} names are more than the {CLASS_BUCKETS[-1]} that a vocabulary may have; split it")
    return fitting[0]


def _normalize(x: Float[np.ndarray, "*batch C"]) -> Float[np.ndarray, "*batch C"]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _read_cached(path: pathlib.Path, shape: tuple[int, int]) -> Float[np.ndarray, "T C"] | None:
    try:
        cached = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("the cached embeddings in %s are unreadable and will be made again: %s", path, error)
        return None
    usable = cached.shape == shape and cached.dtype == np.float32 and np.isfinite(cached).all()
    return cached if usable else None


def _write_cached(path: pathlib.Path, embeddings: Float[np.ndarray, "T C"]) -> None:
    """A cache that cannot be written is a pity, not an error."""
    buffer = io.BytesIO()
    np.save(buffer, embeddings, allow_pickle=False)
    try:
        with files.replacing(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
    except OSError as error:
        log.warning("the text embeddings could not be kept in %s: %s", path.parent, error)
