"""Real OpenCLIP modules of full size, against their conversion: the tables and the towers."""

import zlib
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx

from convert import open_clip
from convert.rules import to_ours, to_torch
from fcclip_jax.models.building import abstract_model, named_variables
from fcclip_jax.models.clip_text import TextTower
from fcclip_jax.models.convnext import ConvNeXt
from fcclip_jax.models.descriptions import clip_description
from fcclip_jax.models.fcclip import CLIP
from fcclip_jax.models.resnet import ResNet
from fcclip_jax.text.tokenizer import tokenize

torch = pytest.importorskip("torch", reason="OpenCLIP's modules are PyTorch (extra: convert)")
package = pytest.importorskip("open_clip", reason="OpenCLIP has the modules to compare with (extra: convert)")

TOLERANCE = 1e-4
"""Relative to the largest value: float32 sums of up to 27 blocks in another order. A wrong GELU is off by 1e-2."""

HEIGHT, WIDTH = 64, 96
IMAGES = np.random.default_rng(0).standard_normal((2, HEIGHT, WIDTH, 3), np.float32)
VALID_HW = np.full((2, 2), (HEIGHT, WIDTH), np.int32)
TOKENS = tokenize(["a photo of a cat.", "There is the umbrella in the scene", "cobblestone", ""])


def excite(module) -> None:
    """Replaces the values that a fresh module has at 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            drawn = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else None
            if name.endswith("gamma"):
                tensor.copy_(0.3 + 0.05 * drawn)
            elif name.endswith("running_var"):
                tensor.copy_(1 + 0.2 * drawn.abs())
            elif name.endswith(("running_mean", ".bias", "in_proj_bias")):
                tensor.copy_(0.1 * drawn)
            elif name.endswith(".weight") and tensor.ndim == 1:
                # A ResNet's residuals add up, so the last norm of each block stays small.
                tensor.copy_((0.3 if "bn3" in name else 1) + 0.1 * drawn)


class Expected(NamedTuple):
    """The results of OpenCLIP's module."""

    stages: list[np.ndarray]
    pooled: np.ndarray | None
    text: np.ndarray


def convert(name: str, stages, *, pooled: bool) -> tuple[CLIP, Expected]:
    """Converts OpenCLIP's module with random weights, and returns our CLIP and the module's own results."""
    torch.manual_seed(0)
    module = package.create_model(name).eval()
    excite(module)
    pixels = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        expected = Expected(
            [x.numpy().transpose(0, 2, 3, 1) for x in stages(module.visual, pixels)],
            module.encode_image(pixels).numpy() if pooled else None,
            module.encode_text(torch.from_numpy(TOKENS)).numpy(),
        )
    description = clip_description(name)
    ours = abstract_model(description)
    variables = named_variables(ours)
    state = dict(module.state_dict())
    sums = {key: (tuple(tensor.shape), zlib.crc32(tensor.numpy())) for key, tensor in state.items()}
    del module
    table = open_clip.rules(description.image.family)
    # Tensors are freed as they are read, so that two copies need not fit into memory.
    parameters, ignored = to_ours(
        {key: lambda key=key: state.pop(key).numpy() for key in list(state)},
        table,
        open_clip.IGNORED,
        {key: variable.shape for key, variable in variables.items()},
    )
    back = {key: (array.shape, zlib.crc32(array)) for key, array in ignored.items()}
    for key, variable in variables.items():
        array = parameters.pop(key)
        tensors = to_torch({key: array}, table, {})
        back |= {source: (tensor.shape, zlib.crc32(tensor)) for source, tensor in tensors.items()}
        variable.set_value(jax.device_put(array))
    assert back == sums
    return ours.clip, expected


def run(part: nnx.Module, function, *arguments):
    """Runs a compiled program with the weights as an argument, not as constants."""
    graphdef, state = nnx.split(part)
    return jax.jit(lambda state, *arguments: function(nnx.merge(graphdef, state), *arguments))(state, *arguments)


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(np.asarray(found) - expected).max() <= TOLERANCE * np.abs(expected).max()


def assert_features(features, expected):
    for found, stage in zip(features[:4], expected.stages, strict=True):
        assert_close(found, stage)
    np.testing.assert_array_equal(features.clip_dense, features.res5)


def test_convnext_base():
    def stages(visual, x):
        x = visual.trunk.stem(x)
        for stage in visual.trunk.stages:
            x = stage(x)
            yield x

    clip, expected = convert("convnext_base", stages, pooled=True)
    features = run(clip.image, ConvNeXt.__call__, IMAGES, VALID_HW)
    assert_features(features, expected)
    # CLIP's global average is the pooling under a mask of the whole image.
    everything = np.ones((2, HEIGHT // 32, WIDTH // 32, 1), bool)
    pooled = run(clip.image, ConvNeXt.embed_masks, features.clip_dense, VALID_HW, everything)
    assert_close(pooled[:, 0], expected.pooled)
    assert_close(run(clip.text, TextTower.__call__, TOKENS), expected.text)


def test_rn50():
    def stages(visual, x):
        x = visual.stem(x)
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
            yield x

    # CLIP's own pooling includes the mean of the features, which FC-CLIP's omits, and accepts one image size only.
    clip, expected = convert("RN50", stages, pooled=False)
    assert_features(run(clip.image, ResNet.__call__, IMAGES, VALID_HW), expected)
    assert_close(run(clip.text, TextTower.__call__, TOKENS), expected.text)
