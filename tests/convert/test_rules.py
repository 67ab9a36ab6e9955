"""The table engine on a small table: both directions, strictness, and the transforms."""

import numpy as np
import pytest

from convert.rules import ConversionError, Ignored, Rule, conv, depthwise, linear, single_row, to_ours, to_torch

RULES = [
    Rule("a.{i}.weight", "x.{i}.w", linear),
    Rule("blocks.{n}.bias", "x.stacked.b", first=1),
    Rule("blocks.0.bias", "x.first.b"),
]
IGNORED = [Ignored("step.{i}", "a counter")]
TARGETS = {"x.0.w": (2, 3), "x.1.w": (2, 1), "x.stacked.b": (2, 4), "x.first.b": (4,)}


def tensors(**changes):
    arrays = {
        "a.0.weight": np.arange(6.0).reshape(3, 2),
        "a.1.weight": np.asarray([[7.0, 8.0]]),
        "blocks.0.bias": np.full(4, 10.0),
        "blocks.1.bias": np.full(4, 11.0),
        "blocks.2.bias": np.full(4, 12.0),
        "step.5": np.asarray(99, np.int64),
        **changes,
    }
    return {key: lambda array=array: array for key, array in arrays.items() if array is not None}


def test_there():
    parameters, ignored = to_ours(tensors(), RULES, IGNORED, TARGETS)
    assert {name: array.tolist() for name, array in parameters.items()} == {
        "x.0.w": [[0, 2, 4], [1, 3, 5]],
        "x.1.w": [[7], [8]],
        "x.stacked.b": [[11] * 4, [12] * 4],
        "x.first.b": [10] * 4,
    }
    assert {array.dtype for array in parameters.values()} == {np.dtype(np.float32)}
    assert ignored == {"step.5": 99}


def test_and_back():
    parameters, ignored = to_ours(tensors(), RULES, IGNORED, TARGETS)
    back = to_torch(parameters, RULES, ignored)
    assert {key: array.tolist() for key, array in back.items()} == {
        key: load().tolist() for key, load in tensors().items()
    }
    assert all(array.flags.c_contiguous for array in back.values())


def problems(*arguments):
    with pytest.raises(ConversionError) as caught:
        to_ours(*arguments)
    return str(caught.value).splitlines()


def test_one_error_lists_everything():
    changed = tensors(
        **{
            "a.0.weight": np.zeros((2, 3)),
            "a.1.weight": np.zeros((1, 2), np.int32),
            "blocks.0.bias": None,
            "blocks.2.bias": None,
            "blocks.3.bias": np.zeros(4),
            "stranger": np.zeros(1),
        }
    )
    assert problems(changed, RULES, IGNORED, TARGETS) == [
        "the weights do not fit the model (6 problems):",
        "  a.0.weight: shape [2, 3] does not fit x.0.w of shape [2, 3]",
        "  a.1.weight: its dtype is int32, but x.1.w needs floating point",
        "  blocks.3.bias: the described model has no layer 3 in x.stacked.b",
        "  stranger: matches no rule",
        "  x.stacked.b (layers 1): no key in the checkpoint fills it",
        "  x.first.b: no key in the checkpoint fills it",
    ]


def test_a_key_that_two_rules_know():
    rules = [*RULES, Rule("a.1.weight", "x.1.w", linear)]
    assert problems(tensors(), rules, IGNORED, TARGETS) == [
        "the weights do not fit the model (2 problems):",
        "  a.1.weight: matches several rules (x.{i}.w, x.1.w)",
        "  x.1.w: no key in the checkpoint fills it",
    ]


def test_two_keys_for_one_parameter():
    rules = [*RULES, Rule("alias", "x.first.b")]
    assert problems(tensors(alias=np.zeros(4)), rules, IGNORED, TARGETS) == [
        "the weights do not fit the model (one problem):",
        "  alias: x.first.b is already filled by another key",
    ]


def test_back_is_strict_too():
    twice = [*RULES, Rule("other.{i}", "x.{i}.w")]
    with pytest.raises(ConversionError, match="x.0.w: matches 2 rules, expected one"):
        to_torch({"x.0.w": np.zeros((2, 3))}, twice, {})
    with pytest.raises(ConversionError, match="y: matches 0 rules, expected one"):
        to_torch({"y": np.zeros(1)}, RULES, {})


@pytest.mark.parametrize(
    ("transform", "torch_shape", "our_shape", "torch_index", "our_index"),
    [
        (linear, (5, 3), (3, 5), (4, 1), (1, 4)),
        (conv, (5, 3, 2, 7), (2, 7, 3, 5), (4, 1, 0, 6), (0, 6, 1, 4)),
        (depthwise, (5, 1, 2, 7), (2, 7, 5), (4, 0, 1, 6), (1, 6, 4)),
        (single_row, (1, 5), (5,), (0, 3), (3,)),
    ],
)
def test_transforms(transform, torch_shape, our_shape, torch_index, our_index):
    array = np.arange(np.prod(torch_shape)).reshape(torch_shape)
    ours = transform.forward(array)
    assert ours.shape == our_shape and ours[our_index] == array[torch_index]
    np.testing.assert_array_equal(transform.backward(ours), array)
