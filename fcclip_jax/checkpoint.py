"""Checkpoints: an orbax directory that describes itself."""

from flax import nnx


def named_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Every variable of the model by its dotted path, as checkpoints and conversion tables name it."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(model))}
