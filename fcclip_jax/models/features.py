"""The arrays that the parts of the network pass to each other."""

from typing import NamedTuple

from jaxtyping import Array, Float


class Features(NamedTuple):
    """The frozen image trunk's output at strides 4, 8, 16 and 32; `clip_dense` is the input of CLIP's own head."""

    res2: Float[Array, "B h2 w2 C2"]
    res3: Float[Array, "B h3 w3 C3"]
    res4: Float[Array, "B h4 w4 C4"]
    res5: Float[Array, "B h5 w5 C5"]
    clip_dense: Float[Array, "B h5 w5 C5"]


class DenseFeatures(NamedTuple):
    """The output of an image trunk that serves CLIP alone, under the name that it has in `Features`."""

    clip_dense: Float[Array, "B h w C"]


class PixelFeatures(NamedTuple):
    """The pixel decoder's output: per-pixel embeddings at stride 4 and three levels, strides 32, 16 and 8."""

    mask_features: Float[Array, "B h2 w2 C"]
    levels: tuple[Float[Array, "B h5 w5 D"], Float[Array, "B h4 w4 D"], Float[Array, "B h3 w3 D"]]
