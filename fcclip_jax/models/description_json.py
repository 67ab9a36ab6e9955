"""Descriptions of models as JSON, inside checkpoints and in files that users write.

A field that is missing takes its default, so that checkpoints from before the field existed are still read.
"""

import dataclasses
from typing import Any, Literal

from fcclip_jax.models.descriptions import (
    ClipDescription,
    ConvNeXtDescription,
    DefaultsDescription,
    EnsembleDescription,
    HeadDescription,
    ModelDescription,
    ResNetDescription,
    TextDescription,
    ViTDescription,
)


def to_json(description: ModelDescription | ClipDescription) -> dict[str, Any]:
    """Returns plain dictionaries and lists, for the description inside a checkpoint."""
    return dataclasses.asdict(description)


def clip_from_json(data: Any) -> ClipDescription:
    """Reads the description of a CLIP that `to_json` wrote.

    Raises:
        ValueError: a field is unknown or of the wrong type, or one without a default is missing.
    """
    families = {"convnext": ConvNeXtDescription, "resnet": ResNetDescription, "vit": ViTDescription}
    _check_fields(ClipDescription, data)
    family = data["image"].get("family") if isinstance(data["image"], dict) else None
    if not isinstance(family, str) or family not in families:
        raise ValueError(f"the model description has the trunk family {family!r}; choose from {', '.join(families)}")
    return ClipDescription(
        image=_from_json(families[family], data["image"]), text=_from_json(TextDescription, data["text"])
    )


def model_from_json(data: Any) -> ModelDescription:
    """Reads the description of a whole FC-CLIP that `to_json` wrote.

    Raises:
        ValueError: as `clip_from_json`.
    """
    _check_fields(ModelDescription, data)
    parts = {
        name: _from_json(cls, data[name])
        for name, cls in {
            "head": HeadDescription,
            "ensemble": EnsembleDescription,
            "defaults": DefaultsDescription,
        }.items()
        if name in data
    }
    return ModelDescription(clip=clip_from_json(data["clip"]), **parts)


def _check_fields(cls: type, data: Any) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"the model description has {data!r:.80} where {cls.__name__} is expected")
    expected = {field.name for field in dataclasses.fields(cls)}
    required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
    if not required <= set(data) <= expected:
        raise ValueError(
            f"{cls.__name__} in the model description has fields {sorted(data)}, expected {sorted(expected)}"
        )


def _from_json(cls: type, data: Any) -> Any:
    _check_fields(cls, data)
    values = {}
    for field in dataclasses.fields(cls):
        if field.name not in data or (data[field.name] is None and field.default is None):
            continue
        value = data[field.name]
        if isinstance(value, list):
            value = tuple(value)
        options = getattr(field.type, "__args__", None) if getattr(field.type, "__origin__", None) is Literal else None
        if options is not None and value not in options:
            raise ValueError(f"{cls.__name__}.{field.name} is {value!r} in the model description, not one of {options}")
        plain = {int: int, float: (int, float), bool: bool}.get(field.type)
        numbers = value if isinstance(value, tuple) else ()
        wrong_tuple = not options and plain is None and not (numbers and all(type(v) is int for v in numbers))
        if wrong_tuple or (plain is not None and (not isinstance(value, plain) or (plain is int and value is True))):
            raise ValueError(f"{cls.__name__}.{field.name} is {value!r} in the model description, not {field.type}")
        values[field.name] = value
    return cls(**values)
