"""Descriptions of models: what they refuse, and their JSON."""

import dataclasses
import json

import pytest

from fcclip_jax.conventions import END_ID, START_ID
from fcclip_jax.models.building import abstract_model, named_variables
from fcclip_jax.models.description_json import clip_from_json, model_from_json, to_json
from fcclip_jax.models.descriptions import SMALL, DefaultsDescription, HeadDescription, ViTDescription

IDS = (0, 7, 300, START_ID, END_ID)


def changed(part, **values):
    """SMALL, with other values in the description of CLIP's `image` or `text`."""
    clip = dataclasses.replace(SMALL.clip, **{part: dataclasses.replace(getattr(SMALL.clip, part), **values)})
    return dataclasses.replace(SMALL, clip=clip)


SIZES = changed("image", kernel_sizes=(3, 1, 7, 5))
WORDS = changed("text", token_ids=IDS, vocab_size=len(IDS))


def test_sizes_reach_the_model():
    variables = named_variables(abstract_model(SIZES))
    shapes = [variables[f"clip.image.stages.{i}.blocks.stacked.conv_dw.weight"].shape for i in range(4)]
    assert shapes == [(2, 3, 3, 32), (2, 1, 1, 64), (4, 7, 7, 128), (2, 5, 5, 256)]
    assert named_variables(abstract_model(WORDS))["clip.text.token_embedding"].shape == (5, 64)


@pytest.mark.parametrize("sizes", [(3, 5, 4, 7), (7, 7, 7, -1)])
def test_wrong_kernels(sizes):
    with pytest.raises(ValueError, match="give positive odd numbers"):
        changed("image", kernel_sizes=sizes)


@pytest.mark.parametrize(
    ("ids", "size", "complaint"),
    [
        (IDS, 49408, "token_ids are 5, but vocab_size is 49408"),
        (IDS[1:], 4, "must ascend, begin with 0"),
        (IDS[:-1], 4, "end with 49406 and 49407"),
        ((0, 9, 8, *IDS[-2:]), 5, "must ascend"),
        ((0, 9, 9, *IDS[-2:]), 5, "must ascend"),
    ],
)
def test_wrong_tokens(ids, size, complaint):
    with pytest.raises(ValueError, match=complaint):
        changed("text", token_ids=ids, vocab_size=size)


DEFAULTS = dataclasses.replace(
    SMALL,
    defaults=DefaultsDescription(
        short_side=256,
        max_side=320,
        overlap_threshold=0.6,
        instance_threshold=0.25,
        panoptic_void_trust=0.5,
        instance_void_trust=1.0,
        instance_scores="mask_logit",
    ),
)


@pytest.mark.parametrize(
    "wrong",
    [
        {"short_side": 0},
        {"max_side": 799},
        {"overlap_threshold": 1.5},
        {"instance_threshold": -0.1},
        {"semantic_void_trust": 2.0},
    ],
)
def test_wrong_defaults(wrong):
    with pytest.raises(
        ValueError, match="choose 1 <= short_side <= max_side, and thresholds and void_trust from 0 to 1"
    ):
        DefaultsDescription(**wrong)


@pytest.mark.parametrize("description", [SMALL, SIZES, WORDS, DEFAULTS])
def test_there_and_back(description):
    assert model_from_json(json.loads(json.dumps(to_json(description)))) == description
    assert clip_from_json(json.loads(json.dumps(to_json(description.clip)))) == description.clip


def test_a_vision_transformer_there_and_back():
    image = ViTDescription(width=48, layers=3, heads=4, image_size=64, embed_dim=64)
    clip = dataclasses.replace(SMALL.clip, image=image)
    assert clip_from_json(json.loads(json.dumps(to_json(clip)))) == clip


def test_a_description_from_before_a_field_existed():
    record = to_json(SMALL)
    del record["clip"]["image"]["kernel_sizes"], record["clip"]["text"]["token_ids"], record["defaults"]
    assert model_from_json(record) == SMALL
    del record["head"]
    assert model_from_json(record).head == HeadDescription()
    del record["clip"]["text"]["width"]
    with pytest.raises(ValueError, match="TextDescription in the model description has fields"):
        model_from_json(record)


@pytest.mark.parametrize(
    ("part", "field", "value", "complaint"),
    [
        ("image", "family", [], r"the trunk family \[\]; choose from convnext"),
        ("image", "kernels", [7, 7, 7, 7], "ConvNeXtDescription in the model description has fields"),
        ("image", "kernel_sizes", None, "ConvNeXtDescription.kernel_sizes is None"),
        ("image", "kernel_sizes", [7, 7, 7, 7.0], r"ConvNeXtDescription.kernel_sizes is \(7, 7, 7, 7.0\)"),
        ("text", "token_ids", "all", "TextDescription.token_ids is 'all'"),
        ("text", "vocab_size", None, "TextDescription.vocab_size is None"),
    ],
)
def test_wrong_json(part, field, value, complaint):
    record = to_json(SMALL)
    record["clip"][part][field] = value
    with pytest.raises(ValueError, match=complaint):
        model_from_json(record)


def test_the_repr_is_that_of_earlier_versions():
    """An evaluation resumes only if its log has the same checksum, which is of the repr and the weights."""
    assert repr(DEFAULTS) == repr(SMALL) and "defaults" not in repr(SMALL)
    assert repr(WORDS.clip.text) == (
        "TextDescription(width=64, heads=2, layers=2, embed_dim=64, quick_gelu=False, context_length=77, vocab_size=5)"
    )
    assert repr(SIZES.clip.image) == (
        "ConvNeXtDescription(depths=(2, 2, 4, 2), dims=(32, 64, 128, 256), embed_dim=64, head='mlp', norm_eps=1e-06,"
        " family='convnext')"
    )
