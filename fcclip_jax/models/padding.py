"""Which part of a padded array is the image: the network must not see the padding of its bucket.

Convolutions that are wider than their stride read zeros there, group norms and mask pooling leave it out, attention never
sees its cells.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def valid_mask(valid_hw: Int[Array, "B 2"], shape: tuple[int, int], stride: int) -> Bool[Array, "B h w"]:
    """Returns which cells of a feature map of `shape` [h, w] at `stride` belong to the image.

    valid_hw: the images' sizes in input pixels.
    """
    h, w = shape
    rows = jnp.arange(h, dtype=valid_hw.dtype)[None, :] < (valid_hw[:, :1] // stride)
    columns = jnp.arange(w, dtype=valid_hw.dtype)[None, :] < (valid_hw[:, 1:] // stride)
    return rows[:, :, None] & columns[:, None, :]
