"""The values that cross packages, and the letters used in all shapes.

B batch, H W image, h w feature grid, C channels, L levels, N tokens over all levels, M heads, P sampling points,
Q queries, K classes, T text rows (one a synonym), G ground-truth segments, S loss points.

Arrays are NHWC. Queries are the channels of the mask image ([B, h, w, Q]), so that per-pixel operations run over
contiguous memory. Sizes are (height, width). The last, extra class is void: K1 is K + 1. `*B` stands for any batch axes,
or none.

Three sizes describe an image inside a batch: the static bucket H x W that the array has; `valid_hw`, the image's own
size rounded up to a multiple of 32, beyond which the network reads nothing; and `image_hw`, the image's own size.

jaxtyping's import hook checks functions, not the fields of a NamedTuple: `checked` does that where structs cross a
boundary.
"""

import functools
import types
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import numpy as np
from beartype.door import is_bearable
from jaxtyping import Bool, Float, Int, UInt8, jaxtyped

if TYPE_CHECKING:  # JAX takes host arrays wherever it takes its own, which type checkers cannot infer
    AnyArray = Any
else:
    AnyArray = jax.Array | np.ndarray
"""An array on the device, on the host, or traced."""

Struct = TypeVar("Struct", bound=tuple)


class TextClassifier(NamedTuple):
    """A vocabulary as the network reads it. Rows and classes are padded to buckets, so new words inside a bucket never recompile."""

    embeddings: Float[AnyArray, "T C"]
    """L2-normalised mean over the prompt templates of each synonym; padded rows are zero."""
    groups: Int[AnyArray, " T"]
    """The class of each row, ascending; padded rows hold K."""
    seen: Bool[AnyArray, " K"]
    """True for classes that share a name with the training vocabulary."""
    num_classes: Int[AnyArray, ""]
    """The number of real classes among the K."""


class Prediction(NamedTuple):
    """One set of masks with their in-vocabulary scores, from the queries after one layer of the mask decoder."""

    mask_logits: Float[AnyArray, "B h w Q"]
    class_logits: Float[AnyArray, "B Q K1"]
    """Void last; padded classes are -inf."""


class Targets(NamedTuple):
    """Ground truth of a batch as an id map: panoptic segments never overlap, so a stack of masks is not needed."""

    segment_map: UInt8[AnyArray, "B H W"]
    """Slot of each pixel's segment in `labels`; 255 for pixels without a segment."""
    labels: Int[AnyArray, "B G"]
    """Class of the segment in each slot, real ones first; -1 in empty slots."""


class Batch(NamedTuple):
    """The input of one training step."""

    images: UInt8[AnyArray, "B H W 3"]
    targets: Targets
    positions: Int[AnyArray, " B"]
    """Index of each row in the endless stream of training images; it seeds the row's random choices."""


class CaptionBatch(NamedTuple):
    """The input of one step of contrastive pre-training.

    Names are 31-bit hashes; -1 fills the rows. N: texts, a multiple of B.
    """

    images: UInt8[AnyArray, "B H W 3"]
    image_names: Int[AnyArray, "B M"]
    """Everything that is known to be in each image."""
    tokens: Int[AnyArray, "N L"]
    """Rows of the text tower's embedding table."""
    text_names: Int[AnyArray, "N M"]
    """What each text names: it is true of the images that have all of it."""


def checked(struct: Struct) -> Struct:
    """Returns the NamedTuple after testing each field's dtype and shape against its annotation.

    A dimension has one size in all fields, those of nested NamedTuples included. NumPy scalars count as arrays without
    axes. Works on traced arrays, where it costs nothing at run time.

    Raises:
        TypeError: a field does not fit.
    """
    fields = list(_flat_fields(struct, type(struct).__name__))
    with jaxtyped("context"):  # in which jaxtyping records the size of each dimension
        for name, value, expected in fields:
            if not any(is_bearable(value, hint) for hint in expected):
                others = ", ".join(f"{other} {_describe(its)}" for other, its, _ in fields if other != name)
                raise TypeError(f"{name} is {_describe(value)}, not {_wanted(expected)}; the other fields are {others}")
    return struct


def _flat_fields(struct: tuple, path: str) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Yields name, value and allowed types of each field, those of nested NamedTuples in their place."""
    for field, expected in _annotations(type(struct)).items():
        name, value = f"{path}.{field}", getattr(struct, field)
        if type(value) in expected and hasattr(value, "_fields"):
            yield from _flat_fields(value, name)
        else:
            yield name, np.asarray(value) if isinstance(value, np.generic) else value, expected


@functools.cache
def _annotations(struct: type) -> dict[str, tuple[Any, ...]]:
    """Returns the alternatives that each field's annotation allows."""
    hints = typing.get_type_hints(struct)
    unions = (typing.Union, types.UnionType)
    return {
        field: typing.get_args(hint) if typing.get_origin(hint) in unions else (hint,) for field, hint in hints.items()
    }


def _describe(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    return "None" if value is None else type(value).__name__


def _wanted(expected: tuple[Any, ...]) -> str:
    """Names the alternatives; those of an array differ only in its place, device or host."""
    names = [
        f"{hint.dtype.__name__}[{hint.dim_str}]" if hasattr(hint, "dim_str") else getattr(hint, "__name__", str(hint))
        for hint in expected
    ]
    return " or ".join(dict.fromkeys("None" if name == "NoneType" else name for name in names))
