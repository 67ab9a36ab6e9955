"""Muon (Jordan et al., 2024): steps of equal length along all singular directions of a matrix's momentum."""

import math
from collections.abc import Mapping

import jax
import optax
from jaxtyping import Array
from optax.contrib import MuonDimensionNumbers, scale_by_muon


def scale_matrices() -> optax.GradientTransformation:
    """Returns Muon's steps for parameters that multiply vectors, by name: [..., in, out], convolutions included.

    All singular values of a step are about 1, or sqrt(out / in) where a matrix has more outputs than inputs.
    """

    def axes(parameters: Mapping[str, Array]) -> dict[str, MuonDimensionNumbers]:
        return {name: _axes(name, array.shape) for name, array in parameters.items()}

    def stretch(updates: Mapping[str, Array], parameters: Mapping[str, Array] | None) -> dict[str, Array]:
        del parameters
        factors = {name: _stretch(_axes(name, update.shape), update.shape) for name, update in updates.items()}
        return jax.tree.map(lambda update, factor: factor * update, dict(updates), factors)

    return optax.chain(scale_by_muon(weight_dimension_numbers=axes), optax.stateless(stretch))


def _axes(name: str, shape: tuple[int, ...]) -> MuonDimensionNumbers:
    """Returns which axes of a parameter are inputs and outputs; stacked layers have a leading axis that is neither."""
    first = int(".stacked." in name)
    return MuonDimensionNumbers(reduction_axis=tuple(range(first, len(shape) - 1)), output_axis=len(shape) - 1)


def _stretch(axes: MuonDimensionNumbers, shape: tuple[int, ...]) -> float:
    return math.sqrt(max(1.0, shape[-1] / math.prod(shape[axis] for axis in axes.reduction_axis)))
