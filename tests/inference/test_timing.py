"""The networks that the timing of stages runs; times are not checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcclip_jax.inference import timing
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.models.precision import BFLOAT16, FLOAT32
from fcclip_jax.models.random_weights import random_model


@pytest.fixture(scope="module")
def model():
    return random_model(SMALL)


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
def test_a_network_has_the_dtypes_of_its_precision(model, precision):
    net = timing.network(model, precision)
    dtypes = {name: variable.dtype for name, variable in named_variables(nnx.merge(*net[:2])).items()}
    wide = {name for name, dtype in dtypes.items() if dtype == jnp.float32}
    assert set(dtypes.values()) <= {jnp.dtype("float32"), jnp.dtype(precision.dtype)}
    # Biases and norms stay wide; most weights, by size, are matrices and kernels.
    assert {name for name in dtypes if name.endswith("bias")} <= wide
    assert ("mask_decoder.layers.0.linear1.weight" in wide) == (precision is FLOAT32)
    assert not any(name.startswith("clip.text.") for name in dtypes)
    # Features have the precision's dtype, class probabilities are float32 in all.
    functions = timing.stages(net.graphdef, precision, (128, 128))
    images, image_hw = jax.ShapeDtypeStruct((1, 96, 128, 3), jnp.uint8), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    features, valid_hw = jax.eval_shape(functions["trunk"], net.state, images, image_hw)
    assert features.res5.dtype == precision.dtype
    pixels = jax.eval_shape(functions["pixel decoder"], net.state, features, valid_hw)
    text, _ = timing.classifier(np.random.default_rng(0), SMALL.clip.image.embed_dim)
    decoded = jax.eval_shape(functions["mask decoder"], net.state, pixels, features.clip_dense, valid_hw, text)
    assert [array.dtype for array in decoded] == [jnp.float32, jnp.float32]


def test_a_network_leaves_its_model_as_it_was(model):
    before = {name: variable.dtype for name, variable in named_variables(model).items()}
    timing.network(model, BFLOAT16)
    assert {name: variable.dtype for name, variable in named_variables(model).items()} == before
    assert any(name.startswith("clip.text.") for name in before)


def test_a_precision_that_the_device_lacks_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as end:
        timing.main(["--precision", "tf32"])
    assert end.value.code == 2 and "precision tf32 needs an NVIDIA GPU" in capsys.readouterr().err
