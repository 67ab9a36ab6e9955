"""The values that cross modules, and the letters every shape is written in.

B batch, H W image, h w feature grid, C channels, L levels, N tokens over all levels, M heads, P sampling points,
Q queries, K classes, T text rows (one a synonym), G ground-truth segments, S loss points.

Arrays are NHWC. Queries are the channels of the mask image ([B, h, w, Q]), so that everything done per pixel runs
over contiguous memory. Sizes are (height, width). The last, extra class is void: K1 is K and it.

Three sizes describe an image inside a batch: the static bucket H x W that the array has; `valid_hw`, the image's own
size rounded up to a multiple of 32, which is all that the network may see; and `image_hw`, the photograph itself.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int, UInt8


class Features(NamedTuple):
    """What the frozen image trunk sees, at strides 4, 8, 16 and 32. `clip_dense` is what CLIP's own head reads."""

    res2: Float[Array, "B h2 w2 C2"]
    res3: Float[Array, "B h3 w3 C3"]
    res4: Float[Array, "B h4 w4 C4"]
    res5: Float[Array, "B h5 w5 C5"]
    clip_dense: Float[Array, "B h5 w5 C5"]


class PixelFeatures(NamedTuple):
    """The pixel decoder's output: per-pixel embeddings at stride 4 and three levels, strides 32, 16 and 8."""

    mask_features: Float[Array, "B h2 w2 C"]
    levels: tuple[Float[Array, "B h5 w5 D"], Float[Array, "B h4 w4 D"], Float[Array, "B h3 w3 D"]]


class TextClassifier(NamedTuple):
    """A vocabulary as the network reads it. Rows and classes are padded to buckets: new words never recompile."""

    embeddings: Float[Array, "T C"]
    """L2-normalised mean over the prompt templates of each synonym; padded rows are zero."""
    groups: Int[Array, " T"]
    """The class of each row, ascending; padded rows hold K."""
    seen: Bool[Array, " K"]
    """Whether a class shares a name with the training vocabulary."""
    num_classes: Int[Array, ""]
    """How many of the K classes are real."""


class Prediction(NamedTuple):
    """One set of masks with their in-vocabulary scores, from the queries after some layer of the mask decoder."""

    mask_logits: Float[Array, "B h w Q"]
    class_logits: Float[Array, "B Q K1"]
    """Void last; padded classes are -inf."""


class Targets(NamedTuple):
    """Ground truth of a batch as an id map: panoptic segments never overlap, so no stack of masks is needed."""

    segment_map: UInt8[Array, "B H W"]
    """Slot of each pixel's segment in `labels`; 255 where there is none."""
    labels: Int[Array, "B G"]
    """Class of the segment in each slot, real ones first; -1 in empty slots."""


class Batch(NamedTuple):
    """What one training step reads."""

    images: UInt8[Array, "B H W 3"]
    targets: Targets
    positions: Int[Array, " B"]
    """Place of each row in the endless stream of training images: the seed of everything random about it."""
