"""Embeddings of a vocabulary: their average, their padding, their cache."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcclip_jax.models.building import named_variables, with_values
from fcclip_jax.models.clip_text import TextTower
from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.text import embeddings
from fcclip_jax.text.embeddings import TextEncoder, aggregate, class_bucket, pad_classifier
from fcclip_jax.text.prompts import PROMPT_TEMPLATES
from fcclip_jax.text.tokenizer import tokenize
from fcclip_jax.text.vocabulary import Vocabulary

WORDS = Vocabulary.from_words(["cat, kitten", "a very long name " * 6, "sofa"], stuff=["sofa"])


@pytest.fixture(scope="module")
def tower():
    return random_model(SMALL).clip.text


def test_the_shortcut_is_exact(tower, monkeypatch):
    """Stopping at the longest end token gives the same features as all 77 positions: attention is causal."""
    encoder = TextEncoder(tower, fingerprint="a", cache_dir=None)
    prompts = WORDS.prompts()
    lengths = tokenize(prompts).argmax(axis=1) + 1
    assert lengths.min() <= 16 and lengths.max() > 32
    # The order of summation differs with the length: float32 rounding only.
    short = encoder.encode(prompts)
    monkeypatch.setattr(embeddings, "TEXT_LENGTHS", (77,))
    np.testing.assert_allclose(short, encoder.encode(prompts), atol=2e-6 * np.abs(short).max())


def test_products_are_float32_on_every_platform(tower):
    """Accelerators would use fewer bits by default, but all platforms share the cache."""
    encoder = TextEncoder(tower, fingerprint="a", cache_dir=None)
    program = encoder._run.lower(encoder._state, np.zeros((64, 16), np.int32)).as_text()
    products = program.count("stablehlo.dot_general")
    assert products == 9  # the eight of a layer, which is a loop, and the projection
    assert program.count("precision = [HIGHEST, HIGHEST]") == products


def test_the_average_by_hand():
    features = np.zeros((28, 2), np.float32)
    features[:14] = [3, 4]
    features[14:21], features[21:] = [0, 5], [2, 0]  # lengths do not count: half up, half right
    np.testing.assert_allclose(aggregate(features), [[0.6, 0.8], [0.5**0.5, 0.5**0.5]], atol=1e-6)


def test_padding():
    rows = np.eye(4, 3, dtype=np.float32)
    text = pad_classifier(rows, WORDS, (True, False, True))
    assert text.embeddings.shape == (2048, 3) and text.groups.shape == text.seen.shape == (2048,)
    np.testing.assert_array_equal(text.embeddings[:4], rows)
    assert not text.embeddings[4:].any() and not text.seen[3:].any()
    np.testing.assert_array_equal(text.groups[:6], [0, 0, 1, 2, 2048, 2048])
    np.testing.assert_array_equal(text.seen[:3], [True, False, True])
    assert text.num_classes == 3


def test_the_cache(tower, tmp_path, monkeypatch, caplog):
    """A second call reads the cache; other weights or words do not; a damaged file is computed again."""
    calls = []
    encode = TextEncoder.encode
    monkeypatch.setattr(TextEncoder, "encode", lambda self, prompts: calls.append(1) or encode(self, prompts))
    encoder = TextEncoder(tower, fingerprint="a", cache_dir=tmp_path)
    first = encoder.embed(WORDS)
    np.testing.assert_array_equal(TextEncoder(tower, fingerprint="a", cache_dir=tmp_path).embed(WORDS), first)
    assert len(calls) == 1
    TextEncoder(tower, fingerprint="b", cache_dir=tmp_path).embed(WORDS)
    encoder.embed(Vocabulary.from_words(["cat"]))
    assert len(calls) == 3 and len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    np.testing.assert_array_equal(encoder.embed(WORDS), first)
    assert len(calls) == 4 and "they are computed again" in caplog.text


def test_a_cache_that_cannot_be_written(tower, tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    encoder = TextEncoder(tower, fingerprint="a", cache_dir=tmp_path / "file" / "cache")
    assert encoder.embed(WORDS).shape == (4, SMALL.clip.text.embed_dim)
    assert "cannot be cached" in caplog.text


def test_quick_gelu_is_another_function(tower):
    """The same weights give other features with QuickGELU."""
    text = dataclasses.replace(SMALL.clip.text, quick_gelu=True)
    model = dataclasses.replace(SMALL, clip=dataclasses.replace(SMALL.clip, text=text))
    towers = tower, random_model(model).clip.text
    exact, quick = (TextEncoder(t, fingerprint="", cache_dir=None).encode(["a cat"]) for t in towers)
    assert 1e-3 < np.abs(exact - quick).max() / np.abs(exact).max() < 0.5


def test_a_table_of_few_tokens(tower):
    """The tower with only the prompts' tokens gives the same features, and refuses other tokens."""
    ids = tuple(np.unique(tokenize(WORDS.prompts())).tolist())
    text = dataclasses.replace(SMALL.clip.text, token_ids=ids, vocab_size=len(ids))
    small = TextTower(text, rngs=nnx.Rngs(0))
    values = {name: jnp.asarray(variable[...]) for name, variable in named_variables(tower).items()}
    small = with_values(small, values | {"token_embedding": values["token_embedding"][jnp.asarray(ids)]})
    encoder = TextEncoder(small, fingerprint="a", cache_dir=None)
    whole = TextEncoder(tower, fingerprint="a", cache_dir=None)
    np.testing.assert_array_equal(encoder.encode(WORDS.prompts()), whole.encode(WORDS.prompts()))
    with pytest.raises(ValueError, match="the text 'a photo of an astronaut.' has a token that this model has no"):
        encoder.encode(["a photo of a cat.", "a photo of an astronaut."])


def test_class_buckets():
    assert [class_bucket(n) for n in (1, 2048, 2049, 100_000)] == [2048, 2048, 8192, 131072]
    with pytest.raises(ValueError, match="131073 names, more than the limit of 131072"):
        class_bucket(131073)


def test_the_latest_names_are_kept_in_memory(tower, monkeypatch):
    encoder = TextEncoder(tower, fingerprint="a", cache_dir=None)
    embedded = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda prompts: embedded.append(len(prompts)) or encode(prompts))
    monkeypatch.setattr(embeddings, "LATEST_NAMES", 3)
    first = encoder.embed(Vocabulary.from_words(["cat, kitten", "dog"]))
    second = encoder.embed(Vocabulary.from_words(["dog", "cat", "tree"]))
    # A name's prompts are in other rows of a batch, which changes the order of no sum.
    np.testing.assert_array_equal(second[:2], first[[2, 0]])
    encoder.embed(Vocabulary.from_words(["kitten"]))  # the one that was not used for the longest time is forgotten
    assert embedded == [3 * len(PROMPT_TEMPLATES), len(PROMPT_TEMPLATES), len(PROMPT_TEMPLATES)]
