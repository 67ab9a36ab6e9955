"""Builds models without values, and lists or fills their variables by name."""

from collections.abc import Mapping

import jax
from flax import nnx

from fcclip_jax.command_line import first_line
from fcclip_jax.models.descriptions import ClipDescription, ModelDescription
from fcclip_jax.models.fcclip import CLIP, FCCLIP
from fcclip_jax.models.layers import Stack
from fcclip_jax.models.mask_decoder import MaskDecoder


def named_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns the model's variables by their dotted paths, the names in checkpoints and conversion tables."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(model))}


def with_values(model: nnx.Module, values: Mapping[str, jax.Array]) -> nnx.Module:
    """Returns a copy of the model with these values in its variables, by name. The model itself does not change."""
    graphdef, state = nnx.split(model)
    filled = [(path, variable.replace(values[".".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def unroll(model: nnx.Module) -> None:
    """Makes the model's repeated layers separate code, which compiles longer and does not copy their parameters."""
    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, Stack):
            module.unroll()
        elif isinstance(module, MaskDecoder):
            module.unrolled = True


def name_before_unroll(name: str) -> tuple[str, int | None]:
    """Returns the name that a variable had before `unroll`, and its index along the leading axis if it was stacked."""
    before, found, rest = name.partition(".modules.")
    if not found:
        return name, None
    index, _, rest = rest.partition(".")
    return f"{before}.stacked.{rest}", int(index)


def abstract_model(description: ModelDescription | ClipDescription) -> nnx.Module:
    """Builds the model without values: nothing is initialised or compiled. A CLIP alone is at `.clip`, as in FC-CLIP.

    Raises:
        ValueError: no model has the sizes in the description.
    """

    def build() -> nnx.Module:
        if isinstance(description, ModelDescription):
            return FCCLIP(description, rngs=nnx.Rngs(0))
        return _ClipAlone(description, rngs=nnx.Rngs(0))

    try:
        model = nnx.eval_shape(build)
        for name, variable in named_variables(model).items():
            if min(variable.shape, default=0) < 0:
                raise ValueError(f"{name} would have the shape {variable.shape}")
        return model
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"no model can be built with the described sizes: {first_line(error)}") from None


class _ClipAlone(nnx.Module):
    def __init__(self, description: ClipDescription, *, rngs: nnx.Rngs):
        self.clip = CLIP(description, rngs=rngs)
