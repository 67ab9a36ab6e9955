"""Every key of the official checkpoints fcclip_cocopan.pth and its RN50 sibling, by lists of their keys and shapes."""

import json
import pathlib
import re
import zlib

import numpy as np
import pytest

from convert import fcclip
from convert.commands import count_parameters
from convert.rules import Rule, to_ours, to_torch
from fcclip_jax.models.building import abstract_model, named_variables
from fcclip_jax.models.descriptions import HeadDescription, clip_description, fcclip_description
from fcclip_jax.training.parameters import is_trainable

MANIFESTS = pathlib.Path(__file__).parent / "manifests"
MODELS = {"convnext_large": "convnext_large_d_320", "r50": "RN50"}


@pytest.fixture(scope="module", params=MODELS)
def official(request):
    """The manifest, the table, and our model's variables."""
    manifest = json.loads((MANIFESTS / f"{request.param}.json").read_text())
    description = fcclip_description(clip_description(MODELS[request.param]))
    rules = fcclip.rules(description.clip.image.family)
    return manifest, rules, named_variables(abstract_model(description))


def matching(template: str, names) -> dict[str, dict[str, int]]:
    """Returns the names that match, each with the numbers of its placeholders."""
    pattern = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(template)))
    found = {name: pattern.fullmatch(name) for name in names}
    return {name: {k: int(v) for k, v in match.groupdict().items()} for name, match in found.items() if match}


def keys_of(rule: Rule, keys) -> list[str]:
    return [key for key, numbers in matching(rule.source, keys).items() if numbers.get("n", rule.first) >= rule.first]


def test_counts(official):
    manifest, _, variables = official
    assert count_parameters(variables) == (manifest["trainable"], manifest["frozen"])


def test_every_key_and_every_parameter_has_one_rule(official):
    manifest, rules, variables = official
    ignored = [key for entry in fcclip.IGNORED for key in matching(entry.source, manifest["tensors"])]
    used = [key for rule in rules for key in keys_of(rule, manifest["tensors"])]
    assert sorted(used + ignored) == sorted(manifest["tensors"])
    assert sorted(name for rule in rules for name in matching(rule.target, variables)) == sorted(variables)
    assert {key.rpartition(".")[2] for key in ignored} <= {"num_batches_tracked", "empty_weight"}


def test_there_and_back(official):
    """Converts rule by rule: the same values as all at once, in a tenth of the memory."""
    manifest, rules, variables = official
    for rule in rules:
        tensors = {key: manifest["tensors"][key] for key in keys_of(rule, manifest["tensors"])}
        targets = {name: variables[name].shape for name in matching(rule.target, variables)}

        def constant(key, shape):
            # A different number for every key; test_rules and the parity tests check how elements move.
            return np.broadcast_to(np.float32(zlib.crc32(key.encode())), shape)

        loaders = {key: lambda key=key, shape=shape: constant(key, shape) for key, shape in tensors.items()}
        parameters, _ = to_ours(loaders, [rule], [], targets)
        back = to_torch(parameters, [rule], {})
        assert {key: list(array.shape) for key, array in back.items()} == tensors
        for key, array in back.items():
            assert array.dtype == np.float32 and (array == constant(key, ())).all(), key


def test_exactly_the_head_trains(official):
    _, rules, variables = official
    for rule in rules:
        for name in matching(rule.target, variables):
            assert is_trainable(name, train_trunk=False) == (not rule.source.startswith(fcclip.CLIP_PREFIX)), name


def test_the_head_is_read_from_the_shapes(official):
    manifest, _, _ = official
    shapes = {key: tuple(shape) for key, shape in manifest["tensors"].items()}
    assert fcclip.head_description(shapes) == HeadDescription()


@pytest.mark.parametrize("name", MODELS)
def test_the_kept_lists_are_the_official_ones(shared, name):
    kept = json.loads((MANIFESTS / f"{name}.json").read_text())
    official = json.loads((shared / "golden" / f"manifest_{name}.json").read_text())
    assert kept["tensors"] == {entry["key"]: entry["shape"] for entry in official["entries"]}
    counts = official["counts"]
    assert (kept["trainable"], kept["frozen"]) == (counts["trainable_params"], counts["frozen_params"])
    trainable = {entry["key"] for entry in official["entries"] if entry["trainable"]}
    assert trainable == {k for k in kept["tensors"] if k.startswith((fcclip.HEAD_PREFIX, "void_embedding."))}
