"""The conversion table of the official FC-CLIP checkpoints' keys: OpenCLIP's under a prefix, and the head's.

OVRCOAT's checkpoints (https://github.com/nickormushev/OVRCOAT) have the same keys, and a second CLIP.
"""

import dataclasses
from collections.abc import Mapping

from fcclip_jax.models.descriptions import DefaultsDescription, HeadDescription
from fcclip_jax.models.pixel_decoder import LEVEL_STRIDES

from . import open_clip
from .rules import Ignored, Rule, conv, linear, same, single_row

CLIP_PREFIX, HEAD_PREFIX = "backbone.clip_model.", "sem_seg_head."
TWIN_PREFIX = "frozen_backbone."
"""Keys of OVRCOAT's second CLIP, which no other model has."""
FOREIGN = {"cdt.": "MAFT+", "mask_adapter.": "Mask-Adapter"}
"""Keys of models that share FC-CLIP's keys but compute something else."""
_PIXEL = "sem_seg_head.pixel_decoder"
_MASK = "sem_seg_head.predictor"


def _pair(source: str, target: str, transform=linear) -> list[Rule]:
    """Makes the rules of a layer's weight and bias."""
    return [
        Rule(f"{source}.weight", f"{target}.weight", transform),
        Rule(f"{source}.bias", f"{target}.bias"),
    ]


def _attention(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.in_proj_weight", f"{target}.in_proj_weight", linear),
        Rule(f"{source}.in_proj_bias", f"{target}.in_proj_bias"),
        *_pair(f"{source}.out_proj", f"{target}.out_proj"),
    ]


_ENCODER, _LAYERS = f"{_PIXEL}.transformer.encoder.layers.{{n}}", "pixel_decoder.layers.stacked"
PIXEL_DECODER = [
    *_pair(f"{_PIXEL}.input_proj.{{i}}.0", "pixel_decoder.input_proj.{i}.conv", conv),
    *_pair(f"{_PIXEL}.input_proj.{{i}}.1", "pixel_decoder.input_proj.{i}.norm", same),
    Rule(f"{_PIXEL}.transformer.level_embed", "pixel_decoder.level_embed"),
    *(
        rule
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for rule in _pair(f"{_ENCODER}.self_attn.{name}", f"{_LAYERS}.self_attn.{name}")
    ),
    *(rule for name in ("norm1", "norm2") for rule in _pair(f"{_ENCODER}.{name}", f"{_LAYERS}.{name}", same)),
    *(rule for name in ("linear1", "linear2") for rule in _pair(f"{_ENCODER}.{name}", f"{_LAYERS}.{name}")),
    *_pair(f"{_PIXEL}.mask_features", "pixel_decoder.mask_features", conv),
    Rule(f"{_PIXEL}.adapter_1.weight", "pixel_decoder.adapter.conv.weight", conv),
    *_pair(f"{_PIXEL}.adapter_1.norm", "pixel_decoder.adapter.norm", same),
    Rule(f"{_PIXEL}.layer_1.weight", "pixel_decoder.fpn.conv.weight", conv),
    *_pair(f"{_PIXEL}.layer_1.norm", "pixel_decoder.fpn.norm", same),
]

_CROSS = f"{_MASK}.transformer_cross_attention_layers.{{i}}"
_SELF = f"{_MASK}.transformer_self_attention_layers.{{i}}"
_FFN = f"{_MASK}.transformer_ffn_layers.{{i}}"
_LAYER = "mask_decoder.layers.{i}"
MASK_DECODER = [
    Rule(f"{_MASK}.logit_scale", "mask_decoder.logit_scale"),
    *_attention(f"{_CROSS}.multihead_attn", f"{_LAYER}.cross_attn"),
    *_pair(f"{_CROSS}.norm", f"{_LAYER}.cross_norm", same),
    *_attention(f"{_SELF}.self_attn", f"{_LAYER}.self_attn"),
    *_pair(f"{_SELF}.norm", f"{_LAYER}.self_norm", same),
    *_pair(f"{_FFN}.linear1", f"{_LAYER}.linear1"),
    *_pair(f"{_FFN}.linear2", f"{_LAYER}.linear2"),
    *_pair(f"{_FFN}.norm", f"{_LAYER}.ffn_norm", same),
    *_pair(f"{_MASK}.decoder_norm", "mask_decoder.decoder_norm", same),
    Rule(f"{_MASK}.query_feat.weight", "mask_decoder.query_feat"),
    Rule(f"{_MASK}.query_embed.weight", "mask_decoder.query_embed"),
    Rule(f"{_MASK}.level_embed.weight", "mask_decoder.level_embed"),
    *_pair(f"{_MASK}.mask_embed.layers.{{i}}", "mask_decoder.mask_embed.layers.{i}"),
    *_pair(f"{_MASK}._mask_pooling_proj.0", "mask_decoder.pool_norm", same),
    *_pair(f"{_MASK}._mask_pooling_proj.1", "mask_decoder.pool_proj"),
    *_pair(f"{_MASK}.class_embed.layers.{{i}}", "mask_decoder.class_embed.layers.{i}"),
    Rule("void_embedding.weight", "void_embedding", single_row),
]

_CLIP_SOURCES = dict.fromkeys(
    [rule.source for family in ("convnext", "resnet") for rule in open_clip.rules(family)]
    + [entry.source for entry in open_clip.IGNORED]
)
IGNORED = [
    *(Ignored(CLIP_PREFIX + entry.source, entry.reason) for entry in open_clip.IGNORED),
    Ignored("criterion.empty_weight", "the training loss's class weights, which the configuration gives"),
    # OVRCOAT runs it at inference too, but reads it only in losses whose weight is 0 (ovrcoat.py:444-465).
    *(
        Ignored(
            f"{TWIN_PREFIX}clip_model.{source}", "OVRCOAT's untouched CLIP, which no result depends on", carried=False
        )
        for source in _CLIP_SOURCES
    ),
]

OVRCOAT = DefaultsDescription(overlap_threshold=0.7, panoptic_void_trust=0.5)
"""OVRCOAT's published configurations (OVERLAP_THRESHOLD, CLIP_TRUST_WEIGHT), with void_trust in panoptic results alone: in its
authors' figures for ADE20K it raises PQ by 1.0, and lowers mIoU by 0.6 and AP by 2.8."""
OVRCOAT_OFFICIAL = dataclasses.replace(
    OVRCOAT, semantic_void_trust=0.5, instance_void_trust=0.5, instance_scores="mask_logit"
)
"""As its code computes all results."""


_SIZES = {
    "hidden_dim": ((f"{_MASK}.query_feat.weight", 1), (f"{_MASK}.query_embed.weight", 1)),
    "num_queries": ((f"{_MASK}.query_feat.weight", 0), (f"{_MASK}.query_embed.weight", 0)),
    "mask_dim": ((f"{_PIXEL}.mask_features.weight", 0), (f"{_PIXEL}.mask_features.bias", 0)),
    "encoder_ffn_dim": ((f"{_ENCODER}.linear1.weight", 0), (f"{_ENCODER}.linear1.bias", 0)),
    "decoder_ffn_dim": ((f"{_FFN}.linear1.weight", 0), (f"{_FFN}.linear1.bias", 0)),
}
"""A key (of the first layer) and an axis that have the size, and another pair in case that key is missing."""


def rules(family: str) -> list[Rule]:
    """Returns the table of one family of image trunks, `convnext` or `resnet`."""
    clip = [rule._replace(source=CLIP_PREFIX + rule.source) for rule in open_clip.rules(family)]
    return clip + PIXEL_DECODER + MASK_DECODER


def head_description(shapes: Mapping[str, tuple[int, ...]]) -> HeadDescription:
    """Reads the head's sizes from the shapes of a checkpoint's tensors.

    The number of heads, which no shape shows, is the official one. A size whose tensors are missing is official too;
    the conversion then reports their keys.
    """

    def size(key: str, axis: int) -> int | None:
        shape = shapes.get(key.format(n=0, i=0), ())
        return shape[axis] if axis < len(shape) else None

    def layers(template: str) -> int:
        prefix = template.partition("{")[0]
        return len({key[len(prefix) :].partition(".")[0] for key in shapes if key.startswith(prefix)})

    found = {name: next((n for key, axis in places if (n := size(key, axis))), 0) for name, places in _SIZES.items()}
    official = HeadDescription()
    offsets = size(f"{_ENCODER}.self_attn.sampling_offsets.bias", 0) or 0
    found["sampling_points"] = offsets // (official.heads * len(LEVEL_STRIDES) * 2)
    found["encoder_layers"], found["decoder_layers"] = layers(_ENCODER), layers(_FFN)
    return dataclasses.replace(official, **{name: n for name, n in found.items() if n})
