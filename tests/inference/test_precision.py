"""Precisions: what runs in which dtype, how much memory weights take, and how far results move."""

import types
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, JaxprEqn

from fcclip_jax.inference.engine import Engine
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.models.fcclip import normalize_images
from fcclip_jax.models.precision import BFLOAT16, FLOAT32, choose_precision, weight_dtype
from fcclip_jax.models.random_weights import random_model
from tests.inference.test_segmenter import WORDS, make_photo
from tests.models.test_padding import TRUNKS, network

CPU, TPU, AMPERE, TURING = (
    types.SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)
    for platform, kind, capability in (
        ("cpu", "cpu", None),
        ("tpu", "TPU v5e", None),
        ("gpu", "NVIDIA A100", "8.0"),
        ("gpu", "Tesla T4", "7.5"),
    )
)


@pytest.mark.parametrize(
    ("device", "name"), [(CPU, "float32"), (TPU, "bfloat16"), (AMPERE, "tf32"), (TURING, "float32")]
)
def test_defaults(device, name):
    assert choose_precision(None, device).name == name
    assert choose_precision("bfloat16", device).dtype == "bfloat16"
    assert choose_precision("float32", device).products == "highest"
    if name == "tf32":
        assert choose_precision("tf32", device).dtype == "float32"
    else:
        with pytest.raises(ValueError, match=f"needs an NVIDIA GPU .* the device is {device.device_kind} .*; choose"):
            choose_precision("tf32", device)


def test_names_that_do_not_exist():
    with pytest.raises(ValueError, match="precision is 'highest'; choose float32, tf32 or bfloat16"):
        Segmenter.random(precision="highest")


def equations(jaxpr: ClosedJaxpr) -> Iterator[JaxprEqn]:
    """Yields the equations of a program, those of its loops and branches too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(value, "eqns"):
                yield from equations(value)


@pytest.mark.parametrize("family", TRUNKS)
def test_what_runs_in_which_dtype(family):
    """Trunk and decoders multiply bfloat16 arrays; exponents and sampling locations are float32."""
    small = network(family, np.float32)
    model = nnx.merge(*small.split)
    for name, variable in named_variables(model).items():
        variable.set_value(jnp.asarray(variable[...]).astype(weight_dtype(name, "bfloat16")))

    def run(images, image_hw):
        pixels, valid_hw = normalize_images(images, image_hw, "bfloat16")
        features = model.clip.image(pixels, valid_hw)
        decoded = model.pixel_decoder(features, valid_hw)
        return model.mask_decoder(decoded, valid_hw)

    program = jax.make_jaxpr(run)(np.zeros((1, 64, 96, 3), np.uint8), np.int32([[60, 90]]))
    found = list(equations(program))
    products = [e for e in found if e.primitive.name in ("dot_general", "conv_general_dilated")]
    assert len(products) > 20
    for equation in products:
        assert {str(x.aval.dtype) for x in equation.invars} == {"bfloat16"}, equation
    for equation in found:
        if equation.primitive.name in ("exp", "rsqrt", "sin", "cos", "floor"):
            assert str(equation.invars[0].aval.dtype) == "float32", equation


def test_weights_take_half_the_memory():
    """Vectors stay in float32, which is a hundredth of a small model."""
    sizes = {}
    for precision in ("float32", "bfloat16"):
        engine = Segmenter.random(precision=precision).engine
        sizes[precision] = held(engine)
        engine.set_weights({"mask_decoder.query_feat": np.ones((SMALL.head.num_queries, SMALL.head.hidden_dim))})
        assert held(engine) == sizes[precision]
    assert 0.5 < sizes["bfloat16"] / sizes["float32"] < 0.51


def held(engine: Engine) -> int:
    return sum(leaf.nbytes for state in engine._states for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("family", TRUNKS)
def test_vectors_and_scalars_are_wide(family):
    model = random_model(network(family, np.float32).description)
    for name, variable in named_variables(model).items():
        if not name.startswith("clip.text."):
            rank = len(variable.shape) - (".stacked." in name)
            assert weight_dtype(name, "bfloat16") == (np.float32 if rank < 2 else weight_dtype("weight", "bfloat16"))


def test_float32_is_the_default_of_a_cpu_whatever_the_caller_sets():
    """The precision is part of the program, not of the thread or of a context around it."""
    photo, scores = make_photo((90, 120)), []
    for context in (None, "bfloat16"):
        segmenter = Segmenter.random(short_side=96, max_side=160)
        segmenter.set_classes(WORDS)
        with jax.default_matmul_precision(context):
            scores.append(segmenter.semantic_scores(photo))
    np.testing.assert_array_equal(*scores)


def test_results_in_bfloat16():
    """A rounding is up to 2^-9 of a value, and a hundred independent ones ten times that: 2e-2 of the scores."""
    scores = {}
    for precision in (FLOAT32, BFLOAT16):
        segmenter = Segmenter.random(short_side=96, max_side=160, precision=precision.name)
        segmenter.set_classes(WORDS)
        scores[precision] = segmenter.semantic_scores(make_photo((200, 300)))
    exact, rounded = scores[FLOAT32], scores[BFLOAT16]
    assert np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2)) < 0.02
    # Random weights give near ties: a few percent of the pixels change class.
    assert (rounded.argmax(0) == exact.argmax(0)).mean() > 0.9
