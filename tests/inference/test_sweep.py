"""Tests settings that must classify masks alike, and settings that must differ."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.inference.resampling import logits_in_view
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.inference.sweep import SecondClip, Way
from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.text.vocabulary import Vocabulary
from tests.inference.test_segmenter import make_photo

WORDS = ["person", "space shuttle, rocket", "flag", "sky"]  # a seen one, and others
SIZE = (150, 210)


@pytest.fixture(scope="module")
def found():
    """Returns panoptic results by the name of their setting; "alone" is the segmenter's result without a sweep."""
    model, other = random_model(SMALL, 0), random_model(SMALL, 1)
    segmenter = Segmenter(
        model, Vocabulary.load("coco_panoptic"), fingerprint="random 0", short_side=96, max_side=160, batch_size=2,
        batched=True,
    )  # fmt: skip
    segmenter.set_classes(WORDS)
    clip_alone = dataclasses.replace(model.ensemble, alpha=1.0, beta=1.0)
    ways = {
        "own": Way(model.ensemble),
        "own size": Way(model.ensemble, short_side=96),
        "clip": Way(clip_alone),
        "clip, smaller": Way(clip_alone, short_side=64),
        "clip, larger": Way(clip_alone, short_side=160),
        "second": Way(clip_alone, second_clip=True),
        "second, own size": Way(clip_alone, short_side=96, second_clip=True),
        "own, less void": Way(model.ensemble, void_trust=0.5),
    }
    text = segmenter._encoder.classifier(segmenter.vocabulary, segmenter.training_vocabulary)
    second = SecondClip(other.clip.image, text, other.clip.logit_scale[...])
    photo = make_photo(SIZE, 5)
    ((_, results),) = segmenter.engine.sweep([photo], list(ways.values()), second_clip=second, overlap_threshold=0.1)
    alone = {}
    for name, void_trust in (("alone", 0.0), ("alone, less void", 0.5)):
        ((_, result),) = segmenter.stream([photo], tasks=("panoptic",), overlap_threshold=0.1, void_trust=void_trust)
        alone[name] = result.panoptic
    return {name: result.panoptic for name, result in zip(ways, results, strict=True)} | alone


def scores(panoptic) -> list[tuple[int, float]]:
    return [(segment.class_index, segment.score) for segment in panoptic.segments]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("own", "alone"),
        ("own size", "own"),
        ("second, own size", "second"),
        ("own, less void", "alone, less void"),
    ],
)
def test_what_is_the_same(found, one, other):
    """A view of the image's own size is the image itself, in an array with more padding."""
    assert len(found[one].segments) > 1
    np.testing.assert_array_equal(found[one].id_map, found[other].id_map)
    classes, values = zip(*scores(found[one]), strict=True)
    others, expected = zip(*scores(found[other]), strict=True)
    assert classes == others
    # Sums in another order.
    np.testing.assert_allclose(values, expected, rtol=1e-4)


@pytest.mark.parametrize("other", ["own", "clip, smaller", "clip, larger", "second"])
def test_what_is_not(found, other):
    largest = [max(score for _, score in scores(found[name])) for name in ("clip", other)]
    assert abs(largest[0] - largest[1]) > 1e-3 * largest[0]


@pytest.mark.parametrize("view", [(32, 96), (64, 64), (160, 224)])
def test_masks_in_a_view(view):
    """Without padding, for sides that are multiples of 32, it is PyTorch's interpolation."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(24, 40, 3)).astype(np.float32)  # of an image of 96 x 160
    padded = np.pad(logits, ((0, 8), (0, 16), (0, 0)), constant_values=9.0)
    grid = (view[0] // 32, view[1] // 32)
    ours = logits_in_view(jnp.asarray(padded), jnp.asarray([96, 160]), jnp.asarray(view), grid)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(logits).double().permute(2, 0, 1)[None], size=grid, mode="bilinear", align_corners=False
    )[0].permute(1, 2, 0)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)  # the rounding of float32


def test_masks_at_another_stride():
    """A view of half the size, in cells of half the side, has the cells of the image itself."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(24, 40, 3)), jnp.float32)
    at_32 = logits_in_view(logits, jnp.asarray([96, 160]), jnp.asarray([96, 160]), (3, 5))
    at_16 = logits_in_view(logits, jnp.asarray([96, 160]), jnp.asarray([48, 80]), (3, 5), 16)
    np.testing.assert_array_equal(at_32, at_16)
