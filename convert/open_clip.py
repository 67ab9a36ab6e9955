"""The conversion table of OpenCLIP's keys, and the sizes that OpenCLIP's models have."""

from collections.abc import Mapping

import numpy as np

from fcclip_jax.conventions import END_ID
from fcclip_jax.models.descriptions import ClipDescription

from .rules import Ignored, Rule, conv, depthwise, linear, same


def _transformer(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.resblocks.{{n}}.{theirs}", f"{target}.resblocks.stacked.{ours}", transform)
        for theirs, ours, transform in (
            ("ln_1.weight", "ln_1.weight", same),
            ("ln_1.bias", "ln_1.bias", same),
            ("attn.in_proj_weight", "attn.in_proj_weight", linear),
            ("attn.in_proj_bias", "attn.in_proj_bias", same),
            ("attn.out_proj.weight", "attn.out_proj.weight", linear),
            ("attn.out_proj.bias", "attn.out_proj.bias", same),
            ("ln_2.weight", "ln_2.weight", same),
            ("ln_2.bias", "ln_2.bias", same),
            ("mlp.c_fc.weight", "c_fc.weight", linear),
            ("mlp.c_fc.bias", "c_fc.bias", same),
            ("mlp.c_proj.weight", "c_proj.weight", linear),
            ("mlp.c_proj.bias", "c_proj.bias", same),
        )
    ]


TEXT = [
    Rule("positional_embedding", "clip.text.positional_embedding"),
    Rule("token_embedding.weight", "clip.text.token_embedding"),
    Rule("text_projection", "clip.text.text_projection"),
    Rule("logit_scale", "clip.logit_scale"),
    Rule("ln_final.weight", "clip.text.ln_final.weight"),
    Rule("ln_final.bias", "clip.text.ln_final.bias"),
    *_transformer("transformer", "clip.text"),
]

CONVNEXT = [
    Rule("visual.trunk.stem.0.weight", "clip.image.stem_conv.weight", conv),
    Rule("visual.trunk.stem.0.bias", "clip.image.stem_conv.bias"),
    Rule("visual.trunk.stem.1.weight", "clip.image.stem_norm.weight"),
    Rule("visual.trunk.stem.1.bias", "clip.image.stem_norm.bias"),
    Rule("visual.trunk.stages.{i}.downsample.0.weight", "clip.image.stages.{i}.downsample_norm.weight"),
    Rule("visual.trunk.stages.{i}.downsample.0.bias", "clip.image.stages.{i}.downsample_norm.bias"),
    Rule("visual.trunk.stages.{i}.downsample.1.weight", "clip.image.stages.{i}.downsample_conv.weight", conv),
    Rule("visual.trunk.stages.{i}.downsample.1.bias", "clip.image.stages.{i}.downsample_conv.bias"),
    *(
        Rule(
            f"visual.trunk.stages.{{i}}.blocks.{{n}}.{source}",
            f"clip.image.stages.{{i}}.blocks.stacked.{target}",
            transform,
        )
        for source, target, transform in (
            ("gamma", "gamma", same),
            ("conv_dw.weight", "conv_dw.weight", depthwise),
            ("conv_dw.bias", "conv_dw.bias", same),
            ("norm.weight", "norm.weight", same),
            ("norm.bias", "norm.bias", same),
            ("mlp.fc1.weight", "fc1.weight", linear),
            ("mlp.fc1.bias", "fc1.bias", same),
            ("mlp.fc2.weight", "fc2.weight", linear),
            ("mlp.fc2.bias", "fc2.bias", same),
        )
    ),
    Rule("visual.trunk.head.norm.weight", "clip.image.head_norm.weight"),
    Rule("visual.trunk.head.norm.bias", "clip.image.head_norm.bias"),
    Rule("visual.head.mlp.fc1.weight", "clip.image.head_fc1.weight", linear),
    Rule("visual.head.mlp.fc1.bias", "clip.image.head_fc1.bias"),
    Rule("visual.head.mlp.fc2.weight", "clip.image.head_fc2.weight", linear),
    Rule("visual.head.proj.weight", "clip.image.head_proj.weight", linear),
]


def _batch_norm(source: str, target: str, first: int = 0) -> list[Rule]:
    names = ("weight", "bias", "running_mean", "running_var")
    return [Rule(f"{source}.{name}", f"{target}.{name}", same, first) for name in names]


def _bottleneck(source: str, target: str, first: int) -> list[Rule]:
    return [
        rule
        for k in (1, 2, 3)
        for rule in (
            Rule(f"{source}.conv{k}.weight", f"{target}.conv{k}.weight", conv, first),
            *_batch_norm(f"{source}.bn{k}", f"{target}.bn{k}", first),
        )
    ]


def _resnet_layer(number: int) -> list[Rule]:
    source, target = f"visual.layer{number}", f"clip.image.layers.{number - 1}"
    return [
        *_bottleneck(f"{source}.0", f"{target}.first", 0),
        Rule(f"{source}.0.downsample.0.weight", f"{target}.first.downsample_conv.weight", conv),
        *_batch_norm(f"{source}.0.downsample.1", f"{target}.first.downsample_bn"),
        *_bottleneck(f"{source}.{{n}}", f"{target}.rest.stacked", 1),
    ]


RESNET = [
    *(Rule(f"visual.conv{k}.weight", f"clip.image.conv{k}.weight", conv) for k in (1, 2, 3)),
    *(rule for k in (1, 2, 3) for rule in _batch_norm(f"visual.bn{k}", f"clip.image.bn{k}")),
    *(rule for number in (1, 2, 3, 4) for rule in _resnet_layer(number)),
    Rule("visual.attnpool.positional_embedding", "clip.image.attnpool.positional_embedding"),
    *(
        Rule(f"visual.attnpool.{x}_proj.{leaf}", f"clip.image.attnpool.{x}_proj.{leaf}", transform)
        for x in "qkvc"
        for leaf, transform in (("weight", linear), ("bias", same))
    ),
]

VIT = [
    Rule("visual.conv1.weight", "clip.image.patch_conv.weight", conv),
    Rule("visual.class_embedding", "clip.image.class_embedding"),
    Rule("visual.positional_embedding", "clip.image.positional_embedding"),
    *(
        Rule(f"visual.{norm}.{leaf}", f"clip.image.{norm}.{leaf}")
        for norm in ("ln_pre", "ln_post")
        for leaf in ("weight", "bias")
    ),
    *_transformer("visual.transformer", "clip.image"),
    Rule("visual.proj", "clip.image.image_projection"),
]

IGNORED = [
    *(
        Ignored(f"visual.{place}.num_batches_tracked", "a counter of batch norm's training")
        for place in ("bn{k}", "layer{i}.{j}.bn{k}", "layer{i}.{j}.downsample.1")
    ),
    Ignored("attn_mask", "the causal mask, which the model computes"),
]


OFFICIAL_KERNEL = 7
"""The side of depthwise kernels in every ConvNeXt of timm's."""


def with_official_sizes(parameters: Mapping[str, np.ndarray], clip: ClipDescription) -> dict[str, np.ndarray]:
    """Returns parameters of the same function with the sizes of OpenCLIP's models.

    Depthwise kernels are padded with zeros to 7 x 7, and the rows of a shorter table of token embeddings are put where
    CLIP's ids have them, among zeros.

    Raises:
        ValueError: a depthwise kernel is larger.
    """
    parameters = dict(parameters)
    if clip.image.family == "convnext":
        for stage, size in enumerate(clip.image.kernel_sizes):
            if size > OFFICIAL_KERNEL:
                raise ValueError(
                    f"stage {stage} has {size}x{size} kernels, but those of the official keys are"
                    f" {OFFICIAL_KERNEL}x{OFFICIAL_KERNEL}: this model cannot be converted to them"
                )
            name, border = f"clip.image.stages.{stage}.blocks.stacked.conv_dw.weight", (OFFICIAL_KERNEL - size) // 2
            parameters[name] = np.pad(parameters[name], ((0, 0), (border, border), (border, border), (0, 0)))
    if clip.text.token_ids is not None:
        table = np.zeros((END_ID + 1, clip.text.width), np.float32)
        table[list(clip.text.token_ids)] = parameters["clip.text.token_embedding"]
        parameters["clip.text.token_embedding"] = table
    return parameters


def rules(family: str) -> list[Rule]:
    """Returns the table of one family of image trunks, `convnext`, `resnet` or `vit`."""
    return TEXT + {"convnext": CONVNEXT, "resnet": RESNET, "vit": VIT}[family]
