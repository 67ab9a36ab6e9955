"""Builds models without values, and lists or fills their variables by name."""

from collections.abc import Mapping

import jax
from flax import nnx

from fcclip_jax.command_line import first_line
from fcclip_jax.models.descriptions import ClipDescription, ModelDescription
from fcclip_jax.models.fcclip import CLIP, FCCLIP
from fcclip_jax.models.layers import Stack
from fcclip_jax.models.mask_decoder import MaskDecoder
from fcclip_jax.models.precision import Precision, cast_state


def named_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns the model's variables by their dotted paths, the names in checkpoints and conversion tables."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(model))}


def with_values(model: nnx.Module, values: Mapping[str, jax.Array]) -> nnx.Module:
    """Returns a copy of the model with these values in its variables, by name. The model itself does not change."""
    graphdef, state = nnx.split(model)
    filled = [(path, variable.replace(values[".".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def without_text(model: FCCLIP) -> FCCLIP:
    """Returns the model without its text tower; both share all other values."""
    image_model = nnx.clone(model, variables=False)
    del image_model.clip.text
    return image_model


def split_for_inference(module: nnx.Module, precision: Precision, platform: str) -> tuple[nnx.GraphDef, nnx.State]:
    """Splits a network, or a trunk alone, into code and weights for the programs of inference. The module does not change.

    Weights have the precision's dtypes. Repeated layers become separate code, so that no program copies their parameters
    out of a stack; `name_before_unroll` gives the weights' former names.

    platform: on "tpu" layers stay stacked, because its compiler takes two minutes for a ConvNeXt-L of separate layers.
    """
    module = nnx.clone(module, variables=False)
    if platform != "tpu":
        for path, part in list(nnx.iter_modules(module)):
            if isinstance(part, MaskDecoder):
                part.unrolled = True
            # The pixel decoder's parameters are few, and its layers need more memory side by side.
            elif isinstance(part, Stack) and path[:1] != ("pixel_decoder",):
                part.unroll()
    graphdef, state = nnx.split(module)
    return graphdef, cast_state(state, precision.dtype)


def name_before_unroll(name: str) -> tuple[str, int | None]:
    """Returns the name that a variable had before `Stack.unroll`, and its index if it was stacked."""
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
