"""What the message says of a CLIP that is not the configuration's."""

import dataclasses

import pytest

from fcclip_jax.models.descriptions import clip_description
from fcclip_jax.training.starting_model import clip_difference


@pytest.mark.parametrize("quick, option", [(True, "--quick-gelu"), (False, "--no-quick-gelu")])
def test_another_gelu_names_the_option_of_the_conversion(quick, option):
    found, expected = (clip_description("RN50", quick_gelu=each) for each in (not quick, quick))
    text = clip_difference(found, expected)
    assert f"text.quick_gelu is {not quick}, not {quick}" in text
    assert text.endswith(f"convert it again with {option}")


def test_another_size_does_not():
    expected = clip_description("RN50", quick_gelu=True)
    other = clip_description("RN101", quick_gelu=False)
    assert "gelu" not in clip_difference(other, expected).replace("text.quick_gelu", "")
    wider = dataclasses.replace(expected, text=dataclasses.replace(expected.text, width=8))
    assert "text.width is 8, not 512" in clip_difference(wider, expected)
