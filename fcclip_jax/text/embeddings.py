"""The text classifier of a vocabulary: CLIP's text tower embeds its prompts once, later runs read a disk cache."""

import hashlib
import io
import logging
import pathlib

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fcclip_jax import progress
from fcclip_jax.files import replacing
from fcclip_jax.models.clip_text import TextTower
from fcclip_jax.structs import TextClassifier
from fcclip_jax.text.prompts import PROMPT_TEMPLATES
from fcclip_jax.text.tokenizer import table_rows, tokenize
from fcclip_jax.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)

BATCH = 64

CLASS_BUCKETS = (2048, 8192, 32768, 131072)
"""Sizes that text rows and classes are padded to: cheap, and all shipped vocabularies fit the first."""

LATEST_NAMES = 4096
"""Names whose embeddings are kept in memory: at most 12 MB of rows of 768 numbers."""

TEXT_LENGTHS = (16, 32, 77)
"""Prompts are cut to these numbers of tokens: attention is causal, so nothing after the end token matters."""


class TextEncoder:
    """Embeds prompts by the text tower, with one compiled program for each of `TEXT_LENGTHS`."""

    def __init__(self, tower: TextTower, *, fingerprint: str, cache_dir: pathlib.Path | None):
        """Prepares a tower.

        fingerprint: identifies the tower's weights in the cache.
        cache_dir: the folder that keeps embeddings between runs. None keeps those of the latest names in memory.
        """
        graphdef, self._state = nnx.split(tower)
        self._embed_dim = tower.text_projection.shape[1]
        self._context_length = tower.positional_embedding.shape[0]
        self._token_ids = tower.token_ids

        def run(state: nnx.State, tokens: Int[Array, "B T"]) -> Float[Array, "B C"]:
            # In float32 on all platforms, because they share the embeddings on disk.
            with jax.default_matmul_precision("highest"):
                return nnx.merge(graphdef, state)(tokens)

        self._run = jax.jit(run)
        self._fingerprint, self._cache_dir = fingerprint, cache_dir
        self._latest: dict[str, Float[np.ndarray, " C"]] = {}  # by name, the latest last

    def classifier(self, vocabulary: Vocabulary, training_vocabulary: Vocabulary) -> TextClassifier:
        """Returns the vocabulary as padded arrays, for a model trained on the classes of `training_vocabulary`."""
        return pad_classifier(self.embed(vocabulary), vocabulary, vocabulary.seen_by(training_vocabulary))

    def embed(self, vocabulary: Vocabulary) -> Float[np.ndarray, "T C"]:
        """Returns one normalised row a synonym, from the cache if possible."""
        if self._cache_dir is None:
            return self._embed_in_memory([name for entry in vocabulary.classes for name in entry.names])
        key = hashlib.sha256(f"{self._fingerprint} {vocabulary.prompts_sha256}".encode()).hexdigest()
        path = self._cache_dir / f"{key}.npy"
        shape = (len(vocabulary.groups), self._embed_dim)
        cached = _read_cached(path, shape)
        if cached is None:
            cached = aggregate(self.encode(vocabulary.prompts()))
            _write_cached(path, cached)
        return cached

    def _embed_in_memory(self, names: list[str]) -> Float[np.ndarray, "T C"]:
        missing = [name for name in dict.fromkeys(names) if name not in self._latest]
        prompts = [template.format(name) for name in missing for template in PROMPT_TEMPLATES]
        rows = dict(zip(missing, aggregate(self.encode(prompts)), strict=True)) if missing else {}
        rows |= {name: self._latest.pop(name) for name in dict.fromkeys(names) if name in self._latest}
        latest = [*self._latest.items(), *rows.items()]
        self._latest = dict(latest[-LATEST_NAMES:])
        return np.stack([rows[name] for name in names])

    def encode(self, prompts: list[str]) -> Float[np.ndarray, "N C"]:
        """Returns the tower's features, not normalised, in the order of the prompts.

        Raises:
            ValueError: a prompt has a token that the tower has no embedding of.
        """
        tokens = tokenize(prompts, self._context_length)
        if self._token_ids is not None:
            tokens = table_rows(tokens, self._token_ids, prompts)
        lengths = np.argmax(tokens, axis=1) + 1
        features = np.empty((len(prompts), self._embed_dim), np.float32)
        with progress.track(desc="embedding", total=len(prompts), unit="prompt", leave=False) as bar:
            limits = sorted({min(limit, self._context_length) for limit in TEXT_LENGTHS} | {self._context_length})
            for shortest, longest in zip([0, *limits], limits, strict=False):
                rows = np.flatnonzero((lengths > shortest) & (lengths <= longest))
                for start in range(0, len(rows), BATCH):
                    batch = rows[start : start + BATCH]
                    filled = np.resize(batch, BATCH)
                    result = self._run(self._state, tokens[filled, :longest])
                    features[batch] = np.asarray(result)[: len(batch)]
                    bar.update(len(batch))
        return features


def aggregate(features: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "T C"]:
    """Averages prompt features to one row a synonym: normalise, average over the templates, normalise (fcclip.py)."""
    by_template = _normalize(features).reshape(-1, len(PROMPT_TEMPLATES), features.shape[1])
    return _normalize(by_template.mean(axis=1))


def pad_classifier(
    embeddings: Float[np.ndarray, "T C"], vocabulary: Vocabulary, seen: tuple[bool, ...]
) -> TextClassifier:
    """Pads rows and classes to their bucket."""
    rows, count = len(embeddings), len(vocabulary.classes)
    bucket = class_bucket(rows)
    return TextClassifier(
        embeddings=np.pad(embeddings, ((0, bucket - rows), (0, 0))),
        groups=np.pad(np.asarray(vocabulary.groups, np.int32), (0, bucket - rows), constant_values=bucket),
        seen=np.pad(np.asarray(seen, bool), (0, bucket - count)),
        num_classes=np.asarray(count, np.int32),
    )


def class_bucket(count: int) -> int:
    """Returns the bucket that `count` text rows or classes are padded to.

    Raises:
        ValueError: `count` is above the largest bucket.
    """
    fitting = [bucket for bucket in CLASS_BUCKETS if bucket >= count]
    if not fitting:
        raise ValueError(f"the vocabulary has {count} names, more than the limit of {CLASS_BUCKETS[-1]}; split it")
    return fitting[0]


def _normalize(x: Float[np.ndarray, "*batch C"]) -> Float[np.ndarray, "*batch C"]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _read_cached(path: pathlib.Path, shape: tuple[int, int]) -> Float[np.ndarray, "T C"] | None:
    try:
        cached = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("the cached embeddings in %s are damaged (%s); they are computed again", path, error)
        return None
    usable = cached.shape == shape and cached.dtype == np.float32 and np.isfinite(cached).all()
    return cached if usable else None


def _write_cached(path: pathlib.Path, embeddings: Float[np.ndarray, "T C"]) -> None:
    """Writes embeddings to the cache. A failure is logged, not raised: the next run computes them again."""
    buffer = io.BytesIO()
    np.save(buffer, embeddings, allow_pickle=False)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
    except OSError as error:
        log.warning("the text embeddings cannot be cached in %s: %s", path.parent, error)
