"""The optimiser against PyTorch's AdamW, gradient clipping and schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from fcclip_jax.training import optim
from fcclip_jax.training.optim import Hyperparameters, OptimSettings, is_matrix, optimizer

SHAPES = {
    "mask_decoder.decoder_norm.weight": (5,),
    "mask_decoder.layers.0.linear1.weight": (3, 4),
    "pixel_decoder.mask_features.bias": (4,),
    "clip.image.stem_conv.weight": (2, 2),
    "clip.image.stem_norm.bias": (2,),
    "mask_decoder.logit_scale": (),
}


def test_clipping_by_hand():
    clip = optim.clip_by_norm(1.0)
    found, _ = clip.update({"a": jnp.asarray([3.0]), "b": jnp.asarray(4.0)}, clip.init({}))
    np.testing.assert_allclose([found["a"][0], found["b"]], [0.6, 0.8], rtol=1e-6)
    kept, _ = clip.update({"a": jnp.asarray([0.3]), "b": jnp.asarray(0.4)}, clip.init({}))
    np.testing.assert_array_equal([kept["a"][0], kept["b"]], np.float32([0.3, 0.4]))


@pytest.mark.parametrize("size", [1e3, 1e-3, 1e-6])
def test_steps_as_torch(size):
    """Compares gradients far above the clip, near it, and so small that eps matters, through both drops of the rate."""
    rng = np.random.default_rng(0)
    settings = OptimSettings(learning_rate=0.01, milestones=(3, 5))
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = []
    for name, parameter in theirs.items():
        multiplier = settings.trunk_multiplier if name.startswith("clip.") else 1.0
        decay = 0.0 if "norm" in name else settings.weight_decay
        groups.append({"params": [parameter], "lr": settings.learning_rate * multiplier, "weight_decay": decay})
    adam = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps)
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, list(settings.milestones), settings.drop)

    transform = optim.optimizer(SHAPES, settings)
    ours = jax.tree.map(jnp.asarray, start)
    state = transform.init(ours)

    @jax.jit
    def step(gradients, state, ours):
        updates, state = transform.update(gradients, state, ours)
        return optax.apply_updates(ours, updates), state

    for _ in range(7):
        gradients = {name: (size * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}
        ours, state = step(gradients, state, ours)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), settings.clip_norm)
        adam.step()
        schedule.step()
        for name, parameter in theirs.items():
            # Parameters are about 1, so float32 itself is as coarse as this.
            np.testing.assert_allclose(ours[name], parameter.detach(), atol=1e-6, rtol=0)
    assert all(np.abs(ours[name] - start[name]).max() > 1e-4 for name in SHAPES)


def test_the_rate_of_each_step():
    rate = optim.learning_rate(OptimSettings())
    official = {0: 1e-4, 11: 1e-4, 327_777: 1e-4, 327_778: 1e-5, 355_091: 1e-5, 355_092: 1e-6, 368_749: 1e-6}
    for step, expected in official.items():
        np.testing.assert_allclose(rate(jnp.int32(step)), expected, rtol=1e-6)


def test_groups_by_hand():
    expected = {
        "mask_decoder.logit_scale": (1.0, 0.05),
        "mask_decoder.level_embed": (1.0, 0.0),
        "pixel_decoder.level_embed": (1.0, 0.05),
        "void_embedding": (1.0, 0.0),
        "pixel_decoder.layers.stacked.norm2.bias": (1.0, 0.0),
        "pixel_decoder.layers.stacked.linear1.bias": (1.0, 0.05),
        "clip.image.stages.0.blocks.stacked.norm.weight": (0.1, 0.0),
        "clip.image.layers.0.first.downsample_bn.bias": (0.1, 0.0),
        "clip.image.stages.0.blocks.stacked.gamma": (0.1, 0.05),
    }
    assert {name: optim.hyperparameters(name, OptimSettings()) for name in expected} == {
        name: Hyperparameters(*values) for name, values in expected.items()
    }
    with pytest.raises(ValueError, match="clip.text.ln_final.weight never trains"):
        optim.optimizer(["clip.text.ln_final.weight"], OptimSettings())
    with pytest.raises(ValueError, match="the parameter stem.weight matches no group"):
        optim.optimizer(["stem.weight"], OptimSettings())


def test_muon_steps_matrices_alone_and_by_its_own_rate():
    square, norm = "mask_decoder.pool_proj.weight", "mask_decoder.decoder_norm.weight"
    rng = np.random.default_rng(0)
    parameters = {square: jnp.asarray(rng.standard_normal((8, 8), np.float32)), norm: jnp.ones(8)}
    gradients = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32)), parameters)
    settings = OptimSettings(learning_rate=1e-3, weight_decay=0.0, muon_learning_rate=0.02)
    official = settings._replace(muon_learning_rate=None)
    (with_muon, _), (with_adam, _) = (
        (update := optimizer(parameters, s)).update(gradients, update.init(parameters), parameters)
        for s in (settings, official)
    )
    np.testing.assert_allclose(with_muon[norm], with_adam[norm], rtol=1e-6)  # the order of factors differs
    # Five Newton-Schulz iterations bring singular values between about 0.7 and 1.2.
    values = np.linalg.svd(np.asarray(with_muon[square]), compute_uv=False) / 0.02
    assert 0.6 < values.min() and values.max() < 1.3
    assert np.linalg.svd(np.asarray(with_adam[square]), compute_uv=False).max() < 0.5 * 0.02


def test_matrices_are_weights_of_all_channels():
    assert is_matrix("pixel_decoder.layers.stacked.linear1.weight") and is_matrix("pixel_decoder.fpn.conv.weight")
    assert is_matrix("mask_decoder.layers.0.self_attn.in_proj_weight")
    assert not is_matrix("clip.image.stages.0.blocks.stacked.conv_dw.weight")
    assert not any(
        map(is_matrix, ("mask_decoder.query_feat", "mask_decoder.pool_proj.bias", "pixel_decoder.fpn.norm.weight"))
    )
