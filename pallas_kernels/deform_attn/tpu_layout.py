"""The arrays that the TPU kernels read: how they are laid out, how large they are, and which rows a program visits.

A program takes one head and a block of `BLOCK` queries, and visits the rows of a level in bands. Samples come with
their queries last, as lanes; each level comes as a matrix of rows * channels by columns, in bfloat16 terms.
"""

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 128
"""Queries of a program: a row of lanes. Larger blocks touch more rows, smaller ones do not fill a tile."""

TILE = 16
"""Channels are padded to bfloat16's tile of sublanes, so that bands may begin at any row."""

LANES = 128
"""Columns of a level are padded to so many lanes, in memory and in matrix products."""

BAND_ROWS = 256
"""Rows of the MXU product, band * D: enough to cover the time that loading the column matrix takes."""

Shapes = tuple[tuple[int, int], ...]


def round_up(size: int, multiple: int) -> int:
    """Returns the smallest multiple that is at least `size`."""
    return -(-size // multiple) * multiple


def band_rows(channels: int) -> int:
    """Returns how many rows of a level a program visits together."""
    return max(BAND_ROWS // round_up(channels, TILE), 1)


def vmem_bytes(shapes: Shapes, points: int, channels: int, *, exact: bool, backward: bool) -> int:
    """Returns an upper estimate of the VMEM that a program takes.

    Blocks count twice (one is fetched while the other is used); what a band computes is added.
    """
    levels, band = len(shapes), band_rows(channels)
    channels = round_up(channels, TILE)
    terms = 3 if exact else 1
    pixels = sum((h + band - 1) * channels * round_up(w, LANES) for h, w in shapes)
    columns, product_rows = points * BLOCK, band * channels
    blocks = 2 * terms * pixels + 4 * BLOCK * (3 * round_up(levels * points, 8) + channels)
    # Products of a band, with the factors of each, and the column matrices as numbers and as bfloat16.
    scratch = 4 * columns * (4 * product_rows + 4 * max(round_up(w, LANES) for _, w in shapes))
    if backward:
        blocks += 4 * pixels + 4 * BLOCK * 3 * round_up(levels * points, 8)
        scratch *= 2
    return 2 * blocks + scratch


def lay_out_samples(locations: jax.Array, weights: jax.Array, shapes: Shapes) -> jax.Array:
    """Returns x and y in pixels, in float32, and the weight: [B, M, 3, L*P, Q rounded up to blocks]."""
    batch, queries, heads, levels, points = weights.shape
    pixels = locations.astype(jnp.float32) * level_wh(shapes) - 0.5
    # One column or row further out nothing is touched, and coordinates there fit an integer.
    pixels = jnp.clip(pixels, -2, level_wh(shapes) + 1)
    samples = jnp.concatenate([pixels, weights.astype(jnp.float32)[..., None]], axis=-1)
    samples = samples.transpose(0, 2, 5, 3, 4, 1).reshape(batch, heads, 3, levels * points, queries)
    surplus = round_up(queries, BLOCK) - queries
    return jnp.pad(samples, ((0, 0), (0, 0), (0, 0), (0, 0), (0, surplus)), constant_values=-2)


def row_ranges(y: jax.Array, shapes: Shapes, band: int) -> tuple[jax.Array, jax.Array]:
    """Returns the first row that a block of queries touches, and how many bands reach the last: both [B, M, L, blocks].

    y: [B, M, L, P, blocks, BLOCK], in pixels. The number of bands is 0 where all points are above or below the level.
    """
    heights = jnp.asarray([h for h, _ in shapes], jnp.float32)[None, None, :, None]
    inside = (y > -1) & (y < heights[..., None, None])
    lowest = jnp.where(inside, y, jnp.inf).min(axis=(3, 5))
    highest = jnp.where(inside, y, -jnp.inf).max(axis=(3, 5))
    first = jnp.clip(jnp.floor(lowest), 0, heights - 1).astype(jnp.int32)
    last = jnp.clip(jnp.floor(highest) + 1, -1, heights - 1).astype(jnp.int32)
    return first, jnp.where(last < 0, 0, (last - first) // band + 1)


def band_ranges(samples: jax.Array, shapes: Shapes, band: int) -> jax.Array:
    """Returns both results of `row_ranges`, of samples from `lay_out_samples`, as [B, M, 2, L, blocks]."""
    batch, heads, _, _, queries = samples.shape
    y = samples[:, :, 1].reshape(batch, heads, len(shapes), -1, queries // BLOCK, BLOCK)
    return jnp.stack(row_ranges(y, shapes, band), axis=2)


def lay_out_planes(value: jax.Array, shapes: Shapes, exact: bool) -> list[jax.Array]:
    """Returns each level as [B, M, terms, rows * D, w]: bfloat16 terms that add up to it.

    Zero rows follow the last, for a band that overhangs.
    """
    batch, _, heads, channels = value.shape
    terms = split_terms(value.astype(jnp.float32)) if exact else [value.astype(jnp.bfloat16)]
    planes, start = [], 0
    for h, w in shapes:
        level = jnp.stack([term[:, start : start + h * w] for term in terms], axis=1)
        level = level.reshape(batch, len(terms), h, w, heads, channels).transpose(0, 4, 1, 2, 5, 3)
        level = pad_to(level, {3: h + band_rows(channels) - 1, 4: round_up(channels, TILE)})
        planes.append(level.reshape(batch, heads, len(terms), -1, w))
        start += h * w
    return planes


def split_terms(x: jax.Array) -> list[jax.Array]:
    """Splits float32 values into three bfloat16 terms of eight bits each, which hold all of their 24 bits."""
    terms = []
    for _ in range(3):
        # Not a cast there and back: XLA is free to leave both out.
        term = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        terms.append(term.astype(jnp.bfloat16))
        x = x - term
    return terms


def level_wh(shapes: Shapes) -> jax.Array:
    """Returns each level's width and height, [1, 1, 1, L, 1, 2], to multiply locations by."""
    return jnp.asarray([(w, h) for h, w in shapes], jnp.float32)[None, None, None, :, None, :]


def pad_to(x: jax.Array, sizes: dict[int, int]) -> jax.Array:
    """Pads the given axes with zeros at their end, to the given sizes."""
    return jnp.pad(x, [(0, sizes.get(axis, size) - size) for axis, size in enumerate(x.shape)])
