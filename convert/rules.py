"""A strict, two-way table engine: PyTorch keys on one side, this project's parameter names on the other.

A rule is a pair of templates, such as

    visual.trunk.stages.{i}.blocks.{n}.norm.weight  <->  clip.image.stages.{i}.blocks.stacked.norm.weight

with a transform of the array. Placeholders are whole numbers. `{n}`, which only the PyTorch side has, numbers the
layers that are stacked along the first axis on ours. Every key must match exactly one rule, or be ignored for a
stated reason; every parameter must be filled; one error lists everything that is wrong.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Transform(NamedTuple):
    """An array's way to our layout and back."""

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]


same = Transform(lambda x: x, lambda x: x)
linear = Transform(np.transpose, np.transpose)
"""[out, in] <-> [in, out]"""
conv = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
"""[out, in, kh, kw] <-> [kh, kw, in, out]"""
depthwise = Transform(lambda x: x[:, 0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[:, None])
"""[C, 1, kh, kw] <-> [kh, kw, C]"""
single_row = Transform(lambda x: x[0], lambda x: x[None])
"""[1, C] <-> [C]"""


class Rule(NamedTuple):
    """`source` is the PyTorch key, `target` ours; `first` is the source's number of the first stacked layer."""

    source: str
    target: str
    transform: Transform = same
    first: int = 0


class Ignored(NamedTuple):
    """A PyTorch key that the model has no use for, and why."""

    source: str
    reason: str


class ConversionError(ValueError):
    """Everything that does not fit, one problem a line."""


def to_ours(
    tensors: Mapping[str, Callable[[], np.ndarray]],
    rules: Iterable[Rule],
    ignored: Iterable[Ignored],
    targets: Mapping[str, tuple[int, ...]],
    *,
    on_key: Callable[[str], None] = lambda key: None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Our float32 parameters by name, and the ignored tensors by key, so that nothing is lost on the way back.

    Args:
        tensors: a loader for each PyTorch key: one tensor is in memory at a time.
        targets: the shape of every parameter to fill, by name; stacked layers in the first axis.
        on_key: called as each key is read.

    Raises:
        ConversionError: a key matches no rule or several, a shape differs, or a parameter stays empty.
    """
    rules, ignored = list(rules), list(ignored)
    problems: list[str] = []
    parameters: dict[str, np.ndarray] = {}
    filled: dict[str, set[int]] = {}
    carried: dict[str, np.ndarray] = {}
    for key, load in tensors.items():
        on_key(key)
        if any(_match(entry.source, key) is not None for entry in ignored):
            carried[key] = load()
            continue
        matches = [(rule, numbers) for rule in rules if (numbers := _match_source(rule, key)) is not None]
        if len(matches) != 1:
            found = ", ".join(rule.target for rule, _ in matches)
            problems.append(f"{key}: " + (f"matches several rules ({found})" if matches else "no rule knows this key"))
            continue
        rule, numbers = matches[0]
        name, layer = _fill(rule.target, numbers), _layer(rule, numbers)
        if name not in targets or (layer is not None and not 0 <= layer < targets[name][0]):
            problems.append(f"{key}: the model as described has no place for it (it would be {name})")
            continue
        shape = targets[name] if layer is None else targets[name][1:]
        source = load()
        try:
            value = rule.transform.forward(source)
        except (IndexError, ValueError):
            value = source
        if value.shape != shape:
            problems.append(f"{key}: shape {list(source.shape)} does not fit {name} of shape {list(shape)}")
            continue
        array = parameters.setdefault(name, np.empty(targets[name], np.float32))
        array[... if layer is None else layer] = value
        slots = filled.setdefault(name, set())
        if (layer or 0) in slots:
            problems.append(f"{key}: {name} is already filled by another key")
        slots.add(layer or 0)
    stacked = {rule.target for rule in rules if _is_stacked(rule)}
    for name, shape in targets.items():
        expected = set(range(shape[0])) if any(_match(t, name) is not None for t in stacked) else {0}
        missing = sorted(expected - filled.get(name, set()))
        if missing:
            layers = "" if expected == {0} else f" (layers {', '.join(map(str, missing))})"
            problems.append(f"{name}{layers}: no key in the checkpoint fills it")
    if problems:
        raise ConversionError(f"{len(problems)} problems in converting the weights:\n  " + "\n  ".join(problems))
    return parameters, carried


def to_torch(
    parameters: Mapping[str, np.ndarray], rules: Iterable[Rule], carried: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The inverse of `to_ours`: contiguous arrays by PyTorch key.

    Raises:
        ConversionError: a parameter matches no rule or several.
    """
    rules, problems = list(rules), []
    tensors = dict(carried)
    for name, array in parameters.items():
        matches = [(rule, numbers) for rule in rules if (numbers := _match(rule.target, name)) is not None]
        if len(matches) != 1:
            problems.append(f"{name}: {len(matches)} rules know this parameter, expected one")
            continue
        rule, numbers = matches[0]
        layers = enumerate(array, rule.first) if _is_stacked(rule) else [(None, array)]
        for layer, value in layers:
            key = _fill(rule.source, numbers if layer is None else {**numbers, "n": layer})
            tensors[key] = np.asarray(rule.transform.backward(value), order="C")
    if problems:
        raise ConversionError(f"{len(problems)} problems in converting the weights:\n  " + "\n  ".join(problems))
    return tensors


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(template)))


def _match(template: str, key: str) -> dict[str, int] | None:
    found = _pattern(template).fullmatch(key)
    return {name: int(number) for name, number in found.groupdict().items()} if found else None


def _match_source(rule: Rule, key: str) -> dict[str, int] | None:
    numbers = _match(rule.source, key)
    return None if numbers is None or numbers.get("n", rule.first) < rule.first else numbers


def _fill(template: str, numbers: Mapping[str, int]) -> str:
    return template.format(**numbers)


def _is_stacked(rule: Rule) -> bool:
    return "{n}" in rule.source


def _layer(rule: Rule, numbers: Mapping[str, int]) -> int | None:
    return numbers["n"] - rule.first if _is_stacked(rule) else None

