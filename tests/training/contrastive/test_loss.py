"""The contrastive loss: which pairs count, by hand, and CLIP's own loss as the special case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fcclip_jax.training.contrastive.loss import contrastive_loss, equal_texts, true_pairs

CAT, DOG, GRASS, SNOW = 3, 8, 20, 21


def rows(*names: tuple[int, ...]) -> jax.Array:
    """Returns names as the batches hold them, padded with -1."""
    return jnp.array([[*own, *[-1] * (4 - len(own))] for own in names], jnp.int32)


def unit(values) -> np.ndarray:
    values = np.asarray(values)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def random_embeddings(images: int, texts: int, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return tuple(unit(rng.standard_normal((count, 8))).astype(dtype) for count in (images, texts))


def losses(images, texts, positives, shares=None, scale=5.0) -> list[float]:
    shares = np.ones(len(texts), np.float32) if shares is None else shares
    found = jax.jit(contrastive_loss)(images, texts, np.asarray(positives), np.asarray(shares), jnp.float32(scale))
    return [float(value) for value in found]


def test_a_text_is_true_of_the_images_that_have_all_it_names():
    images = rows((CAT, GRASS), (DOG, CAT, SNOW), (), (SNOW, SNOW))
    texts = rows((CAT,), (CAT, DOG), (DOG, CAT), (GRASS, CAT), (SNOW,), ())
    expected = [
        [True, False, False, True, False, False],
        [True, True, True, False, True, False],
        [False, False, False, False, False, False],
        [False, False, False, False, True, False],
    ]
    np.testing.assert_array_equal(true_pairs(images, texts), expected)


def test_texts_that_name_the_same_share_one_weight():
    texts = rows((CAT,), (DOG,), (CAT,), (CAT, DOG), (DOG, CAT), (CAT,))
    # The order of names counts; -1 is equal to -1.
    np.testing.assert_allclose(equal_texts(texts), [1 / 3, 1, 1 / 3, 1, 1, 1 / 3], rtol=1e-6)


def test_with_one_text_an_image_it_is_clips_loss():
    images, texts = random_embeddings(6, 6)
    logits = 5 * torch.from_numpy(images) @ torch.from_numpy(texts).T
    target = torch.arange(6)
    expected = [torch.nn.functional.cross_entropy(x, target).item() for x in (logits, logits.T)]
    # Two ways to sum six float32 exponentials.
    assert losses(images, texts, np.eye(6, dtype=bool)) == pytest.approx(expected, rel=1e-5)


def test_several_positives_by_hand():
    """Two images, three texts. Each positive competes with the negatives of its row or column alone."""
    images = np.array([[1, 0], [0, 1]], np.float32)
    texts = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    positives = [[True, True, False], [False, True, True]]
    # Logits at scale 2: [[2, 1.2, 0], [0, 1.6, 2]].
    e = np.exp
    first = (-np.log(e(2) / (e(2) + e(0))) - np.log(e(1.2) / (e(1.2) + e(0)))) / 2
    second = (-np.log(e(1.6) / (e(1.6) + e(0))) - np.log(e(2) / (e(2) + e(0)))) / 2
    # The middle text is true of both images: it has no negatives, and its loss is 0.
    to_images = (-np.log(e(2) / (e(2) + e(0))) + 0 - np.log(e(2) / (e(2) + e(0)))) / 3
    expected = [(first + second) / 2, to_images]
    assert losses(images, texts, positives, scale=2.0) == pytest.approx(expected, rel=1e-6)


def test_shares_weigh_positives_and_negatives():
    images, texts = np.array([[1, 0]], np.float32), np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    found = losses(images, texts, [[True, True, False]], [0.5, 1.0, 0.25], scale=1.0)
    negatives = 0.25 * np.exp(0)
    own = [np.log(1 + negatives / np.exp(logit)) for logit in (1.0, 0.6)]
    # The only image has no rival: the loss from texts to images is 0.
    assert found == pytest.approx([(0.5 * own[0] + own[1]) / 1.5, 0], rel=1e-6)


def test_a_copy_of_a_text_changes_nothing():
    images, texts = random_embeddings(4, 5)
    image_names = rows((CAT, GRASS), (DOG, SNOW), (CAT, DOG, GRASS), (SNOW,))
    text_names = rows((CAT,), (DOG,), (GRASS,), (CAT, DOG), (SNOW,))

    def with_copies(of: int, count: int) -> list[float]:
        order = [*range(5), *[of] * count]
        names = text_names[np.array(order)]
        return losses(images, texts[order], true_pairs(image_names, names), equal_texts(names))

    alone = with_copies(0, 0)
    for of in range(5):
        # Weights of a third are rounded.
        assert with_copies(of, 2) == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_one_kind_have_no_loss_and_finite_gradients(dtype):
    images, texts = (jnp.asarray(x, dtype) for x in random_embeddings(3, 4))
    # Image 0 has no positive, image 1 no negative.
    positives = np.array([[False] * 4, [True] * 4, [False, True, False, False]])
    everything = np.ones((3, 4), bool)
    for pairs in (positives, everything, ~everything):

        def total(images, texts, scale, pairs=pairs):
            pair = contrastive_loss(images, texts, jnp.asarray(pairs), jnp.ones(4), scale)
            return pair[0] + pair[1]

        # A large scale: exp overflows without the usual subtraction of the largest logit.
        value, grads = jax.value_and_grad(total, argnums=(0, 1, 2))(images, texts, jnp.asarray(100, dtype))
        assert np.isfinite(float(value))
        for grad in grads:
            assert np.isfinite(np.asarray(grad, np.float32)).all()
        if pairs is not positives:
            # Without rivals, or without anything that is true, there is nothing to learn.
            assert float(value) == 0
            assert all(np.all(np.asarray(grad, np.float32) == 0) for grad in grads)
