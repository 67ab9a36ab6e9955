"""Models without values, their variables by name, and values put into them."""

from collections.abc import Mapping

import jax
from flax import nnx

from fcclip_jax.models.descriptions import ClipDescription, ModelDescription
from fcclip_jax.models.fcclip import CLIP, FCCLIP
from fcclip_jax.reporting import first_line


def named_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns every variable of the model by its dotted path, as checkpoints and conversion tables name it."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(model))}


def with_values(model: nnx.Module, values: Mapping[str, jax.Array]) -> nnx.Module:
    """Returns the same model with these values in its variables, by name. The model itself stays as it is."""
    graphdef, state = nnx.split(model)
    filled = [(path, variable.replace(values[".".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def abstract_model(description: ModelDescription | ClipDescription) -> nnx.Module:
    """Builds the model without values: nothing is initialised or compiled. A CLIP alone is at `.clip`, as in FC-CLIP.

    Raises:
        ValueError: the sizes in the description do not make a model.
    """
    build = FCCLIP if isinstance(description, ModelDescription) else _ClipAlone
    try:
        model = nnx.eval_shape(lambda: build(description, rngs=nnx.Rngs(0)))
        for name, variable in named_variables(model).items():
            if min(variable.shape, default=0) < 0:
                raise ValueError(f"{name} would have the shape {variable.shape}")
        return model
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"no model can be built of the sizes in its description: {first_line(error)}") from None


class _ClipAlone(nnx.Module):
    def __init__(self, description: ClipDescription, *, rngs: nnx.Rngs):
        self.clip = CLIP(description, rngs=rngs)
