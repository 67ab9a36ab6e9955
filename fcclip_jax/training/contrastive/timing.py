"""Times a step of contrastive pre-training: `python -m fcclip_jax.training.contrastive.timing --torch`.

The step is training's own, for the CLIP of the miniature world: both towers, the loss of all pairs, gradient, Muon and
Adam. --torch adds PyTorch's step, in float32 and with bfloat16 autocast, of the same towers (timm's ConvNeXt and OpenCLIP's
text tower), the same batch and the same optimisers. The sides take turns, step by step; seconds are medians.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from fcclip_jax import command_line
from fcclip_jax.data.captions import MOST_NAMES, Size
from fcclip_jax.models.descriptions import ClipDescription
from fcclip_jax.structs import CaptionBatch
from fcclip_jax.training import sharding
from fcclip_jax.training.contrastive.optim import ContrastiveOptimSettings
from fcclip_jax.training.contrastive.step import fresh_clip, initial_contrastive_state, make_contrastive_step
from fcclip_jax.world import words
from fcclip_jax.world.clip import clip_description

SIZES = (Size(64, 128, 1), Size(128, 32, 3))
"""Those of configs/world_clip.py."""
LENGTHS = (16, 24)
"""Tokens of the texts in a step of each size."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="steps of each side (default: %(default)s)")
    parser.add_argument("--torch", action="store_true", help="time PyTorch's step too")
    arguments = parser.parse_args()
    return command_line.run(lambda: _run(arguments.repeats, arguments.torch), memory_advice="close other programs")


def _run(repeats: int, torch: bool) -> int:
    if repeats < 1:
        raise ValueError(f"--repeats is {repeats}; it must be at least 1")
    if torch and not importlib.util.find_spec("timm"):
        raise ValueError("--torch needs PyTorch, timm and OpenCLIP: pip install '.[convert]'")
    description = clip_description()
    print(f"{'pictures':<16} {'texts':<10} {'side':<18} {'first step':>10} {'step':>8}   seconds")
    for size, length in zip(SIZES, LENGTHS, strict=True):
        batch = _batch(size, length, description)
        steps = {"JAX": _jax_step(description, batch)}
        if torch:
            steps["PyTorch, float32"] = _torch_step(description, batch, autocast=False)
            steps["PyTorch, bfloat16"] = _torch_step(description, batch, autocast=True)
        first = {name: _seconds(step) for name, step in steps.items()}
        rounds = [{name: _seconds(step) for name, step in steps.items()} for _ in range(repeats)]
        for name in steps:
            median = statistics.median(seconds[name] for seconds in rounds)
            pictures, texts = f"{size.images} of {size.side} px", f"{len(batch.tokens)} x {length}"
            print(f"{pictures:<16} {texts:<10} {name:<18} {first[name]:10.1f} {median:8.3f}", flush=True)
    return command_line.DONE


def _seconds(step: Callable[[], None]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def _batch(size: Size, length: int, description: ClipDescription) -> CaptionBatch:
    """Makes up pictures and texts: each picture has one of the world's words, and its texts name it."""
    rng = np.random.default_rng(0)
    texts = size.images * size.texts
    tokens = rng.integers(1, description.text.vocab_size - 1, (texts, length), dtype=np.int32)
    tokens[:, -1] = description.text.vocab_size - 1
    names = np.full((size.images, MOST_NAMES), -1, np.int32)
    names[:, 0] = rng.integers(len(words.WORDS), size=size.images)
    images = rng.integers(0, 256, (size.images, size.side, size.side, 3), dtype=np.uint8)
    return CaptionBatch(images, names, tokens, np.repeat(names, size.texts, axis=0))


def _jax_step(description: ClipDescription, batch: CaptionBatch) -> Callable[[], None]:
    mesh, settings = sharding.make_mesh(1, 1), ContrastiveOptimSettings()
    state = initial_contrastive_state(fresh_clip(description, 0), settings, 1000, mesh)
    train_step = make_contrastive_step(description, settings, 1000, 0.999, mesh)
    placed = sharding.place_batch(batch, mesh)

    def step() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state, _ = train_step(state, placed)
        jax.block_until_ready(state)

    return step


def _torch_step(description: ClipDescription, batch: CaptionBatch, *, autocast: bool) -> Callable[[], None]:
    import open_clip.transformer
    import timm.models.convnext
    import torch
    from torch.nn import functional

    image, text = description.image, description.text
    trunk = timm.models.convnext.ConvNeXt(
        depths=image.depths, dims=image.dims, kernel_sizes=image.kernel_sizes, ls_init_value=0.5, num_classes=0
    ).to(memory_format=torch.channels_last)
    trunk.projection = torch.nn.Linear(image.dims[-1], image.embed_dim, bias=False)
    tower = open_clip.transformer.TextTransformer(
        context_length=batch.tokens.shape[1],
        vocab_size=text.vocab_size,
        width=text.width,
        heads=text.heads,
        layers=text.layers,
        output_dim=text.embed_dim,
    )
    scale = torch.nn.Parameter(torch.tensor(np.log(1 / 0.07)))
    matrices = [
        p
        for module in (trunk, tower)
        for name, p in module.named_parameters()
        if p.ndim == 2 and "embedding" not in name
    ]
    known = {id(p) for p in matrices}
    others = [p for module in (trunk, tower) for p in module.parameters() if id(p) not in known]
    optimizers = [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW([*others, scale], lr=3e-3)]
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float().div(64).sub(2)
    images = images.contiguous(memory_format=torch.channels_last)
    tokens = torch.from_numpy(batch.tokens).long()
    positives = torch.from_numpy(batch.image_names[:, None, 0] == batch.text_names[None, :, 0])

    def one_way(logits, positives):
        negatives = logits.masked_fill(positives, -1e30).logsumexp(1, keepdim=True)
        return ((functional.softplus(negatives - logits) * positives).sum(1) / positives.sum(1).clamp(min=1)).mean()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            pooled = trunk.projection(trunk(images))
            embedded = tower(tokens)
        logits = scale.exp() * functional.normalize(pooled.float()) @ functional.normalize(embedded.float()).T
        loss = (one_way(logits, positives) + one_way(logits.T, positives.T)) / 2
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


if __name__ == "__main__":
    sys.exit(main())
