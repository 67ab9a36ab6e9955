"""CLIP's vision transformer against OpenCLIP's module, and its padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert import open_clip
from convert.rules import to_ours
from fcclip_jax.models.building import abstract_model, named_variables, with_values
from fcclip_jax.models.descriptions import SMALL, ClipDescription, ModelDescription, TextDescription, ViTDescription
from fcclip_jax.models.vit import VisionTransformer

TRUNK = ViTDescription(width=48, layers=3, heads=4, image_size=64, embed_dim=24)
TEXT = TextDescription(width=8, heads=1, layers=1, embed_dim=24, quick_gelu=False, vocab_size=4)


@functools.cache
def both():
    """Returns OpenCLIP's module, excited, and our CLIP with its weights."""
    torch = pytest.importorskip("torch", reason="OpenCLIP's modules are PyTorch (extra: convert)")
    transformer = pytest.importorskip("open_clip.transformer", reason="it has the module to compare with")
    torch.manual_seed(0)
    module = transformer.VisionTransformer(
        image_size=64, patch_size=16, width=48, layers=3, heads=4, mlp_ratio=4.0, output_dim=24,
        pool_type="avg", final_ln_after_pool=True, output_tokens=True,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("bias") or "ln_" in name:
                tensor.add_(0.2 * torch.randn(tensor.shape))
    model = abstract_model(ClipDescription(image=TRUNK, text=TEXT))
    targets = {name: x.shape for name, x in named_variables(model).items() if name.startswith("clip.image.")}
    tensors = {f"visual.{key}": tensor.detach().numpy for key, tensor in module.state_dict().items()}
    values, _ = to_ours(tensors, open_clip.VIT, (), targets)
    return module, with_values(
        model.clip.image, {name.removeprefix("clip.image."): jnp.asarray(x) for name, x in values.items()}
    )


def theirs(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns OpenCLIP's whole-image embeddings and its patches' tokens, after resizing its table of positions."""
    import torch
    from open_clip.model import resize_pos_embed

    module, _ = both()
    grid = images.shape[1] // 16, images.shape[2] // 16
    state = {"visual.positional_embedding": module.positional_embedding.detach().clone()}

    class Resized:
        visual = type("visual", (), {"grid_size": grid})

    resize_pos_embed(state, Resized)
    own = module.positional_embedding.data
    module.positional_embedding.data = state["visual.positional_embedding"]
    tokens = []
    hook = module.transformer.register_forward_hook(lambda _, __, output: tokens.append(output))
    with torch.no_grad():
        pooled, _ = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    hook.remove()
    module.positional_embedding.data = own
    return pooled.numpy(), tokens[0][:, 1:].numpy().reshape(len(images), *grid, -1)


def ours(images: np.ndarray, valid_hw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns our whole-image embeddings and dense features."""
    graphdef, state = nnx.split(both()[1])

    @jax.jit
    def run(state, images, valid_hw):
        trunk: VisionTransformer = nnx.merge(graphdef, state)
        dense = trunk(images, valid_hw).clip_dense
        everywhere = jnp.ones((*dense.shape[:3], 1), bool)
        return trunk.embed_masks(dense, valid_hw, everywhere)[:, 0], dense

    return jax.tree.map(np.asarray, run(state, images, valid_hw))


@pytest.mark.parametrize("shape", [(64, 64), (96, 160), (32, 64)])
def test_against_open_clip(shape):
    """Also at sizes for which the table of positions grows or shrinks."""
    images = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    pooled, tokens = theirs(images)
    found, dense = ours(images, np.full((2, 2), shape, np.int32))
    # Float32 sums in another order; values are about 1.
    np.testing.assert_allclose(dense, tokens, atol=2e-5)
    np.testing.assert_allclose(found, pooled, atol=1e-5)


def test_padding_changes_nothing():
    rng = np.random.default_rng(1)
    image = rng.normal(size=(1, 64, 96, 3)).astype(np.float32)
    padded = rng.normal(size=(1, 128, 128, 3)).astype(np.float32)
    padded[:, :64, :96] = image
    hw = np.array([[64, 96]], np.int32)
    alone, dense = ours(image, hw)
    together, wide = ours(padded, hw)
    np.testing.assert_allclose(wide[:, :4, :6], dense, atol=2e-5)  # sums in another order
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_it_is_no_trunk_of_a_mask_decoder():
    clip = ClipDescription(image=TRUNK, text=TEXT)
    with pytest.raises(ValueError, match="features at one stride, but the mask decoder needs four"):
        abstract_model(ModelDescription(clip=clip, head=SMALL.head))


@pytest.mark.parametrize("sizes", [{"patch_size": 14}, {"image_size": 72}, {"image_size": 0}])
def test_wrong_sizes(sizes):
    with pytest.raises(ValueError, match="patches must have 8, 16 or 32 pixels, and images a multiple of them"):
        ViTDescription(**{"width": 48, "layers": 3, "heads": 4, "image_size": 64, "embed_dim": 24, **sizes})
