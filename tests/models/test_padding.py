"""Padding has no effect: an image gives the same result in any bucket, with any other images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fcclip_jax.data.images import pad
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import (
    ClipDescription,
    ConvNeXtDescription,
    EnsembleDescription,
    HeadDescription,
    ModelDescription,
    ResNetDescription,
    TextDescription,
)
from fcclip_jax.models.fcclip import normalize_images
from fcclip_jax.models.precision import weight_dtype
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.structs import TextClassifier

TEXT = TextDescription(width=8, heads=1, layers=1, embed_dim=16, quick_gelu=False, vocab_size=64)
TRUNKS = {
    "convnext": ConvNeXtDescription(depths=(1, 1, 2, 1), dims=(8, 12, 16, 24), embed_dim=16, head="mlp"),
    "resnet": ResNetDescription(layers=(1, 2, 1, 1), width=8, image_size=96, embed_dim=16),
}
HEAD = HeadDescription(
    hidden_dim=32,
    mask_dim=32,
    heads=2,
    encoder_layers=2,
    encoder_ffn_dim=32,
    decoder_layers=3,
    decoder_ffn_dim=32,
    num_queries=6,
)
OWN_SIZES = ((32, 64), (64, 96), (96, 64))
"""Multiples of 32 that images are padded to for comparison; an image is up to 31 pixels smaller."""
BUCKETS = ((96, 96), (128, 160))


class Network:
    """A small model of one family, as functions of a batch."""

    def __init__(self, family: str, dtype: type):
        description = ModelDescription(
            clip=ClipDescription(image=TRUNKS[family], text=TEXT),
            head=HEAD,
            ensemble=EnsembleDescription(valid_masks_only=family == "resnet"),
        )
        rng = np.random.default_rng(1)
        rows = rng.standard_normal((5, 16))
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        self.text = TextClassifier(
            embeddings=np.pad(rows, ((0, 1), (0, 0))).astype(np.promote_types(dtype, np.float32)),
            groups=np.array([0, 0, 1, 2, 3, 6], np.int32),
            seen=np.array([True, False, True, False, False, False]),
            num_classes=np.int32(4),
        )
        self.description = description
        model = random_model(description)
        for name, variable in named_variables(model).items():
            variable.set_value(np.asarray(variable[...], weight_dtype(name, dtype)))
        self.split = graphdef, self.state = nnx.split(model)

        @jax.jit
        def run(state, images, image_hw, text):
            model = nnx.merge(graphdef, state)
            pixels, valid_hw = normalize_images(images, image_hw, dtype)
            prediction, features = model(pixels, valid_hw, text)
            return prediction.mask_logits, model.classify(prediction, features.clip_dense, valid_hw, text)

        self.run = run

    def __call__(
        self, images: list[np.ndarray], bucket: tuple[int, int], noise: int = 2
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns mask logits inside each image's own multiple of 32, and class probabilities. The padding is noise."""
        batch = np.random.default_rng(noise).integers(0, 256, (len(images), *bucket, 3), dtype=np.uint8)
        for row, image in enumerate(images):
            batch[row, : image.shape[0], : image.shape[1]] = image
        sizes = np.array([image.shape[:2] for image in images], np.int32)
        logits, probs = (
            np.asarray(x, self.text.embeddings.dtype) for x in self.run(self.state, batch, sizes, self.text)
        )
        cells = -(-sizes // 32) * 8
        return [(x[:h, :w], p) for x, p, (h, w) in zip(logits, probs, cells, strict=True)]


network = functools.cache(Network)


def make_image(size: tuple[int, int], seed: int) -> np.ndarray:
    """Draws noise over a gradient, so that all cells differ."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 150, size[0])[:, None, None] + np.linspace(0, 50, size[1])[None, :, None]
    return (ramp + rng.integers(0, 56, (*size, 3))).astype(np.uint8)


def check(family: str, dtype: type, images: list[np.ndarray], bucket: tuple[int, int], tolerance: float):
    together = network(family, dtype)(images, bucket)
    for image, (logits, probs) in zip(images, together, strict=True):
        own = tuple(-(-side // 32) * 32 for side in image.shape[:2])
        ((own_logits, own_probs),) = network(family, dtype)([image], own)
        assert (own_logits > 0).any() and (own_logits < 0).any()
        np.testing.assert_allclose(logits, own_logits, rtol=0, atol=tolerance * np.abs(own_logits).max())
        np.testing.assert_allclose(probs, own_probs, rtol=0, atol=tolerance)


sizes = st.sampled_from(OWN_SIZES).flatmap(lambda own: st.tuples(*(st.integers(side - 31, side) for side in own)))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("family", TRUNKS)
def test_any_size_in_any_bucket_beside_any_other(x64, family):
    """In float64, a difference of 1e-9 would show that a padding cell was read."""

    # Shrinking would run the network hundreds of times.
    @settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(st.lists(sizes, min_size=2, max_size=2), st.sampled_from(BUCKETS), st.integers(0, 2**31))
    def any_mix(shapes, bucket, seed):
        images = [make_image(shape, seed + i) for i, shape in enumerate(shapes)]
        check(family, np.float64, images, bucket, 1e-9)

    any_mix()


@pytest.mark.parametrize("family", TRUNKS)
def test_in_float32(family):
    """In float32, sums of another length round differently: far below 1e-4 unless a mask logit is close to zero."""
    images = [make_image(shape, seed) for seed, shape in enumerate([(20, 50), (64, 90)])]
    check(family, np.float32, images, BUCKETS[1], 1e-4)


@pytest.mark.parametrize("family", TRUNKS)
def test_in_bfloat16(family):
    """Other pixels in the padding change no bit. Another bucket may change each rounding, as XLA then fuses otherwise.

    Its features are therefore compared with a tolerance of twice bfloat16's own error, 1.3e-2 of the mask features
    (tests/parity). Later ones would tell less: a mask that changes sign changes what the mask decoder's layers see.
    """
    small = network(family, jnp.bfloat16)
    images = [make_image(shape, seed) for seed, shape in enumerate([(20, 50), (64, 90)])]
    for one, other in zip(small(images, BUCKETS[1]), small(images, BUCKETS[1], noise=3), strict=True):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)

    @jax.jit
    def mask_features(state, images, image_hw):
        model = nnx.merge(small.split[0], state)
        pixels, valid_hw = normalize_images(images, image_hw, jnp.bfloat16)
        return model.pixel_decoder(model.clip.image(pixels, valid_hw), valid_hw).mask_features.astype(jnp.float32)

    for image, own in zip(images, [(32, 64), (64, 96)], strict=True):
        size = np.array([image.shape[:2]], np.int32)
        alone, padded = (
            np.asarray(mask_features(small.state, pad(image, bucket)[None], size)) for bucket in (own, BUCKETS[1])
        )
        difference = padded[:, : own[0] // 4, : own[1] // 4] - alone
        assert np.sqrt(np.mean(difference**2)) < 0.026 * np.sqrt(np.mean(alone**2))
