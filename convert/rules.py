"""Converts arrays by strict, two-way tables: PyTorch keys on one side, this project's parameter names on the other.

A rule is a pair of templates, such as

    visual.trunk.stages.{i}.blocks.{n}.norm.weight  <->  clip.image.stages.{i}.blocks.stacked.norm.weight

with a transform of the array. Placeholders are whole numbers. `{n}`, which only the PyTorch side has, numbers the
layers that are stacked along the first axis of our parameter. Each key must match exactly one rule, or be ignored for
a stated reason; each parameter must be filled; one error lists all problems.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Transform(NamedTuple):
    """Converts an array to our layout and back."""

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
    """A template of PyTorch keys (`source`), and one of our names (`target`).

    `first` is the number of the first stacked layer in the source.
    """

    source: str
    target: str
    transform: Transform = same
    first: int = 0


class Ignored(NamedTuple):
    """A template of PyTorch keys that the model does not use, and the reason."""

    source: str
    reason: str
    carried: bool = True
    """Whether the checkpoint keeps the tensors, so that `to_torch` writes them again; otherwise they are not even read."""

    def matches(self, key: str) -> bool:
        return _pattern(self.source).fullmatch(key) is not None


class ConversionError(ValueError):
    """Lists all problems of a conversion, one a line."""

    def __init__(self, problems: Sequence[str]):
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"the weights do not fit the model ({count}):\n  " + "\n  ".join(problems))


def to_ours(
    tensors: Mapping[str, Callable[[], np.ndarray]],
    rules: Iterable[Rule],
    ignored: Iterable[Ignored],
    targets: Mapping[str, tuple[int, ...]],
    *,
    on_key: Callable[[str], None] = lambda key: None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns our float32 parameters by name, and the ignored tensors by key that are carried, which `to_torch` needs.

    Args:
        tensors: a loader for each PyTorch key. One tensor is in memory at a time.
        targets: the shape of each parameter to fill, by name; stacked layers are the first axis.
        on_key: called with each key when it is read.

    Raises:
        ConversionError: a key matches no rule or several, a shape differs, or a parameter stays empty.
    """
    ignored, patterns = list(ignored), [(rule, _pattern(rule.source)) for rule in rules]
    problems: list[str] = []
    parameters: dict[str, np.ndarray] = {}
    filled: dict[str, set[int]] = {}
    carried: dict[str, np.ndarray] = {}
    for key, load in tensors.items():
        on_key(key)
        if entry := next((entry for entry in ignored if entry.matches(key)), None):
            if entry.carried:
                carried[key] = np.array(load())
            continue
        matches = [(rule, n) for rule, n in _matches(patterns, key) if n.get("n", rule.first) >= rule.first]
        if len(matches) != 1:
            found = ", ".join(rule.target for rule, _ in matches)
            problems.append(f"{key}: " + (f"matches several rules ({found})" if matches else "matches no rule"))
            continue
        rule, numbers = matches[0]
        name, layer = _fill(rule.target, numbers), _layer(rule, numbers)
        if name not in targets:
            problems.append(f"{key}: the described model has no parameter {name}")
            continue
        if layer is not None and not 0 <= layer < targets[name][0]:
            problems.append(f"{key}: the described model has no layer {numbers['n']} in {name}")
            continue
        slots = filled.setdefault(name, set())
        if (layer or 0) in slots:
            problems.append(f"{key}: {name} is already filled by another key")
            continue
        slots.add(layer or 0)
        shape = targets[name] if layer is None else targets[name][1:]
        source = load()
        try:
            value = rule.transform.forward(source)
        except (IndexError, ValueError):
            value = source
        if value.shape != shape:
            problems.append(f"{key}: shape {list(source.shape)} does not fit {name} of shape {list(shape)}")
            continue
        if value.dtype.kind != "f":
            problems.append(f"{key}: its dtype is {value.dtype}, but {name} needs floating point")
            continue
        array = parameters.setdefault(name, np.empty(targets[name], np.float32))
        array[... if layer is None else layer] = value
    stacked = [_pattern(rule.target) for rule, _ in patterns if _is_stacked(rule)]
    for name, shape in targets.items():
        expected = set(range(shape[0])) if any(pattern.fullmatch(name) for pattern in stacked) else {0}
        missing = sorted(expected - filled.get(name, set()))
        if missing:
            layers = "" if expected == {0} else f" (layers {', '.join(map(str, missing))})"
            problems.append(f"{name}{layers}: no key in the checkpoint fills it")
    if problems:
        raise ConversionError(problems)
    return parameters, carried


def to_torch(
    parameters: Mapping[str, np.ndarray], rules: Iterable[Rule], carried: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Inverts `to_ours`: returns contiguous arrays by PyTorch key.

    Raises:
        ConversionError: a parameter matches no rule or several.
    """
    patterns = [(rule, _pattern(rule.target)) for rule in rules]
    problems: list[str] = []
    tensors = dict(carried)
    for name, array in parameters.items():
        matches = _matches(patterns, name)
        if len(matches) != 1:
            problems.append(f"{name}: matches {len(matches)} rules, expected one")
            continue
        rule, numbers = matches[0]
        layers = enumerate(array, rule.first) if _is_stacked(rule) else [(None, array)]
        for layer, value in layers:
            key = _fill(rule.source, numbers if layer is None else {**numbers, "n": layer})
            tensors[key] = np.asarray(rule.transform.backward(value), order="C")
    if problems:
        raise ConversionError(problems)
    return tensors


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(template)))


def _matches(patterns: Sequence[tuple[Rule, re.Pattern[str]]], key: str) -> list[tuple[Rule, dict[str, int]]]:
    """Returns the rules that match, each with the numbers of its placeholders."""
    found = ((rule, pattern.fullmatch(key)) for rule, pattern in patterns)
    return [(rule, {name: int(n) for name, n in match.groupdict().items()}) for rule, match in found if match]


def _fill(template: str, numbers: Mapping[str, int]) -> str:
    return template.format(**numbers)


def _is_stacked(rule: Rule) -> bool:
    return "{n}" in rule.source


def _layer(rule: Rule, numbers: Mapping[str, int]) -> int | None:
    return numbers["n"] - rule.first if _is_stacked(rule) else None
