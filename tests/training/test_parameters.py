"""The table of parameters against the official rules, spelt out independently, over every parameter of both families."""

import re

import pytest

from fcclip_jax.models.building import abstract_model, named_variables
from fcclip_jax.models.descriptions import clip_description, fcclip_description
from fcclip_jax.training.parameters import GROUPS, group_of, is_statistic, is_trainable

NAMES = {
    clip: sorted(named_variables(abstract_model(fcclip_description(clip_description(clip)))))
    for clip in ("convnext_large_d_320", "convnext_base_w_320", "RN50")
}


@pytest.mark.parametrize("clip", NAMES)
def test_what_trains(clip):
    names = NAMES[clip]
    head = {name for name in names if is_trainable(name, train_trunk=False)}
    assert head == {name for name in names if not name.startswith("clip.")}
    trunk = {name for name in names if is_trainable(name, train_trunk=True)} - head
    own_head = ("clip.image.head", "clip.image.attnpool")
    assert trunk == {
        name
        for name in names
        if name.startswith("clip.image.") and not name.startswith(own_head) and "running_" not in name
    }
    assert {name for name in names if is_statistic(name)} == {name for name in names if "running_" in name}


@pytest.mark.parametrize("clip", NAMES)
def test_what_decays_and_what_is_slowed(clip):
    """Normalisation layers and the three embedding layers do not decay; only the trunk has a lower rate."""
    undecayed = re.compile(r"norm\d?\.|bn\d?\.|query_feat|query_embed|mask_decoder\.level_embed|void_embedding")
    for name in NAMES[clip]:
        if is_trainable(name, train_trunk=True):
            assert group_of(name).decays == (undecayed.search(name) is None), name
            assert group_of(name).slowed == name.startswith("clip."), name


def test_every_group_is_in_use():
    used = {group_of(name) for names in NAMES.values() for name in names}
    assert used == set(GROUPS)


def test_an_unknown_parameter_is_named():
    with pytest.raises(ValueError, match="the parameter adapter.weight matches no group"):
        is_trainable("adapter.weight", train_trunk=False)
