"""Precisions: what runs in which dtype, how much memory weights take, and how far results move."""

import gc
import types
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, JaxprEqn

from fcclip_jax import checkpoint
from fcclip_jax.inference.engine import Engine
from fcclip_jax.inference.feeding import stack
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.inference.sweep import SecondClip, SecondInputs, Way
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.models.fcclip import normalize_images
from fcclip_jax.models.precision import BFLOAT16, FLOAT32, choose_precision, weight_dtype
from fcclip_jax.models.random_weights import random_model
from tests.inference.test_segmenter import WORDS, make_photo
from tests.models.test_padding import TRUNKS, network
from tests.test_checkpoint import contents as random_contents

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
        with pytest.raises(ValueError, match=f"needs an NVIDIA GPU .* the device is {device.device_kind}; choose"):
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
    graphdef, state = network(family, jnp.bfloat16).split
    model = nnx.merge(graphdef, jax.tree.map(jnp.asarray, state))

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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_of_products_in_any_thread(precision):
    """JAX's contexts are per thread, so that the compiled programs must name the precision themselves."""
    segmenter = Segmenter.random(short_side=96, max_side=160, precision=precision)
    segmenter.set_classes(WORDS)
    engine = segmenter.engine
    photo = engine.feeder.decode(0, make_photo((90, 120)))

    def products() -> list[tuple[jax.lax.Precision, jax.lax.Precision]]:
        """Returns the precisions of the products of float32 arrays."""
        inputs = stack([photo], photo.bucket, size=1)
        options = {"canvas": (640, 640), "classes": len(WORDS), "before_resize": False}
        program = engine._score.trace(engine._states[0], inputs, engine._words[0].text, np.float32(0), **options).jaxpr
        found = [e for e in equations(program) if e.primitive.name in ("dot_general", "conv_general_dilated")]
        return [e.params["precision"] for e in found if str(e.invars[0].aval.dtype) == "float32"]

    with jax.default_matmul_precision("bfloat16"), ThreadPoolExecutor(1) as pool:
        for found in (products(), pool.submit(products).result()):
            assert len(found) > (20 if precision == "float32" else 2)
            assert set(found) == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}


def test_a_second_clip_has_the_dtypes_of_the_first(monkeypatch):
    segmenter = Segmenter.random(short_side=96, max_side=160, precision="bfloat16")
    segmenter.set_classes(WORDS)
    engine = segmenter.engine
    taken = []

    def sweep(state: nnx.State, second: SecondInputs, *_, **__):
        taken.extend(jax.tree.map(lambda x: x.dtype, nnx.to_pure_dict(part)) for part in (state, second.state))
        raise InterruptedError

    monkeypatch.setattr(engine, "_sweep", sweep)
    ways = [Way(engine.ensemble, second_clip=True)]
    second = SecondClip(random_model(SMALL, 1).clip.image, engine._words[0].text, np.float32(0))
    with pytest.raises(InterruptedError):
        list(engine.sweep([make_photo((90, 120))], ways, second_clip=second))
    assert taken[0]["clip"]["image"] == taken[1]
    assert set(jax.tree.leaves(taken[1])) == {np.dtype(np.float32), np.dtype(jnp.bfloat16)}


def test_a_loaded_model_is_not_held_beside_the_engine(tmp_path, monkeypatch):
    """Otherwise bfloat16 would take more memory than float32."""
    contents = random_contents()
    checkpoint.save(tmp_path / "model", contents)
    load, loaded = checkpoint.load, []

    def watched(path):
        found = load(path)
        loaded.append(weakref.ref(found.model))
        return found

    monkeypatch.setattr(checkpoint, "load", watched)
    segmenter = Segmenter.load(tmp_path / "model", precision="bfloat16")
    gc.collect()
    assert loaded[0]() is None
    image_model = [x for name, x in contents.parameters.items() if not name.startswith("clip.text.")]
    assert held(segmenter.engine) < 0.6 * sum(x.nbytes for x in image_model)


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
