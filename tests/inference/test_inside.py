"""What a model computes on the way: features, masks, and both classifiers' probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fcclip_jax.conventions import ceil_div
from fcclip_jax.inference.inside import dense_features
from fcclip_jax.inference.postprocess import postprocess
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.models.descriptions import SMALL, ViTDescription
from fcclip_jax.models.fcclip import PIXEL_MEAN, PIXEL_STD
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.models.vit import VisionTransformer
from tests.inference.test_segmenter import make_photo

WORDS = ["astronaut, cosmonaut", "flag", "person", "sky"]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    segmenter = Segmenter.random(short_side=96, max_side=160)
    segmenter.set_classes(WORDS, stuff=["sky"])
    return segmenter


@pytest.fixture(scope="module")
def random_trunk() -> nnx.Module:
    return random_model(SMALL, 0).clip.image


@pytest.mark.parametrize(
    ("short_side", "resized", "cells"),
    [(64, (64, 96), (2, 3)), (70, (70, 105), (3, 4))],  # the second is padded to 96 x 128
)
def test_features_are_the_trunks(segmenter, random_trunk, short_side, resized, cells):
    photo = make_photo((60, 90))
    features = segmenter.features(photo, short_side)
    pixels = np.asarray(Image.fromarray(photo).resize(resized[::-1], Image.Resampling.BILINEAR), np.float32)
    normal = (pixels - np.asarray(PIXEL_MEAN, np.float32)) / np.asarray(PIXEL_STD, np.float32)
    height, width = (32 * side for side in cells)
    padded = np.zeros((1, height, width, 3), np.float32)
    padded[0, : resized[0], : resized[1]] = normal
    graphdef, state = nnx.split(random_trunk)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda state, *inputs: nnx.merge(graphdef, state)(*inputs).clip_dense[0])
        expected = run(state, padded, np.asarray([[height, width]], np.int32))
    assert features.shape == (*cells, 256) and features.dtype == np.float32
    # The engine unrolls the trunk's stacked layers, and sums have another order.
    np.testing.assert_allclose(features, expected, atol=2e-5 * np.abs(expected).max())


def test_features_depend_on_no_words(segmenter):
    before = segmenter.features(make_photo((60, 90)), short_side=64)
    other = Segmenter.random(short_side=96, max_side=160)
    np.testing.assert_array_equal(other.features(make_photo((60, 90)), short_side=64), before)


def test_a_vision_transformers_features_have_its_stride():
    description = ViTDescription(width=32, layers=1, heads=2, patch_size=16, image_size=64, embed_dim=16)
    trunk = VisionTransformer(description, rngs=nnx.Rngs(0))
    assert dense_features(trunk, make_photo((60, 90)), 70).shape == (5, 7, 32)


def test_bad_sizes_and_images_are_refused(segmenter, tmp_path):
    with pytest.raises(ValueError, match="short_side is 31; give at least 32 pixels"):
        segmenter.features(make_photo((60, 90)), 31)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        segmenter.explain(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="void_trust is 2"):
        segmenter.explain(make_photo((60, 90)), void_trust=2.0)
    with pytest.raises(ValueError, match="set_classes"):
        Segmenter.random().explain(make_photo((60, 90)))


def test_an_explanation_makes_the_result(segmenter):
    """The panoptic result follows from the masks and the mixed probabilities, and these from the other two."""
    photo = make_photo((150, 240))
    void_trust = 0.5
    masks, in_vocab, out_vocab, mixed = segmenter.explain(photo, void_trust=void_trust)
    resized = (96, 154)
    assert masks.shape[:2] == tuple(ceil_div(side, 4) for side in resized)
    assert in_vocab.shape == mixed.shape == (masks.shape[2], len(WORDS) + 1)
    assert out_vocab.shape == (masks.shape[2], len(WORDS))
    for probs in (in_vocab, out_vocab, mixed):
        np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)

    # Equation 7 by hand. "person" is a class of COCO's, and "sky" a part of one's name; the others are unseen.
    seen = np.asarray([False, False, True, segmenter.engine._words[0].text.seen[3]])
    weight = np.where(seen, segmenter.engine.ensemble.alpha, segmenter.engine.ensemble.beta)
    trained = in_vocab[:, :-1] / in_vocab[:, :-1].sum(axis=1, keepdims=True)
    product = trained ** (1 - weight) * out_vocab**weight
    void = in_vocab[:, -1] * (1 - void_trust * out_vocab.max(axis=1))
    expected = product / product.sum(axis=1, keepdims=True) * (1 - void[:, None])
    # The ensemble adds 1e-8 to each probability.
    np.testing.assert_allclose(mixed[:, :-1], expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(mixed[:, -1], void, rtol=1e-4, atol=1e-7)

    result = segmenter(photo, tasks=["panoptic"], overlap_threshold=0.1, void_trust=void_trust)
    made = postprocess(
        jnp.pad(masks, ((0, -masks.shape[0] % 8), (0, -masks.shape[1] % 8), (0, 0)), mode="edge")[None],
        {"panoptic": jnp.asarray(mixed[None])},
        jnp.asarray([True, True, True, False]),
        jnp.asarray(len(WORDS), jnp.int32),
        jnp.asarray([resized], jnp.int32),
        jnp.asarray([photo.shape[:2]], jnp.int32),
        canvas=(640, 640),
        overlap_threshold=0.1,
    )
    assert result.panoptic.segments
    # Cells beyond the image, which are not in the explanation, take part in the resizing of its right edge.
    same = np.asarray(made.panoptic)[0, :150, :240] == result.panoptic.id_map
    assert same[:, :236].all()
