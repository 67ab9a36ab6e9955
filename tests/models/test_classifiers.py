"""The rescaling of void (OVRCOAT), by hand and at the values where it changes nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.models.classifiers import ensemble
from fcclip_jax.models.descriptions import EnsembleDescription

# One query: in the vocabulary 30 % and 10 % for two classes and 60 % void; out of it 80 % and 20 %.
IN_VOCAB, OUT_VOCAB = np.log([[[0.3, 0.1, 0.6]]]), np.log([[[0.8, 0.2]]])
SEEN, VALID = np.array([True, False]), np.array([[True]])


def probabilities(void_trust, alpha_beta=None, **mixing):
    found = ensemble(
        jnp.asarray(IN_VOCAB, jnp.float32),
        jnp.asarray(OUT_VOCAB, jnp.float32),
        jnp.asarray(SEEN),
        jnp.asarray(VALID),
        EnsembleDescription(**mixing),
        void_trust,
        alpha_beta,
    )
    return np.asarray(found)[0, 0]


def test_void_by_hand():
    """Void keeps 1 - 0.5 x 0.8 of its 60 %, and the classes share the rest as before: 75 % and 25 % in the vocabulary."""
    # Each probability of float32 was raised by 1e-8 and the three divided by their sum.
    np.testing.assert_allclose(probabilities(0.5, alpha=0.0, beta=0.0), [0.75 * 0.64, 0.25 * 0.64, 0.36], rtol=1e-6)
    np.testing.assert_allclose(probabilities(1.0, alpha=1.0, beta=1.0), [0.8 * 0.88, 0.2 * 0.88, 0.12], rtol=1e-6)


@pytest.mark.parametrize("mode", ["geometric", "arithmetic"])
def test_no_trust_changes_no_bit(mode):
    assert probabilities(0.0, mode=mode).tolist() == probabilities(jnp.zeros(()), mode=mode).tolist()
    before, after = probabilities(0.0, mode=mode), probabilities(0.7, mode=mode)
    np.testing.assert_allclose(after[:2] / after[:2].sum(), before[:2] / before[:2].sum(), rtol=1e-6)


@pytest.mark.parametrize("mode", ["geometric", "arithmetic"])
def test_alpha_and_beta_as_an_array_change_no_bit(mode):
    given = probabilities(0.5, jnp.asarray([0.3, 0.7], jnp.float32), mode=mode)
    assert given.tolist() == probabilities(0.5, mode=mode, alpha=0.3, beta=0.7).tolist()
    assert given.tolist() != probabilities(0.5, mode=mode).tolist()


def test_padded_classes_have_no_certainty():
    """A padded class has no probability, whatever void gives away."""
    padded = ensemble(
        jnp.asarray(np.insert(IN_VOCAB, 2, -np.inf, axis=-1), jnp.float32),
        jnp.asarray(np.insert(OUT_VOCAB, 2, -np.inf, axis=-1), jnp.float32),
        jnp.asarray([True, False, False]),
        jnp.asarray(VALID),
        EnsembleDescription(),
        0.5,
    )
    np.testing.assert_array_equal(np.delete(np.asarray(padded)[0, 0], 2), probabilities(0.5))
    assert padded[0, 0, 2] == 0
