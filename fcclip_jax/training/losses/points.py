"""Draws points on masks (PointRend), and samples logits and targets there.

Points are (x, y) in [0, 1]. A map of any size is sampled bilinearly, as by detectron2's `point_sample`, which is
`grid_sample` with align_corners=False: cell i spans [i, i + 1] / size, and the map is zero outside.
"""

import functools
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt8

CHUNK = 8
"""Pairs that are processed at a time: the cost is that of the real pairs, rounded up to a multiple."""


@runtime_checkable
class PointDraws(Protocol):
    """Points for the rows of a batch. `row` and `slot` are int32 scalars, traced; `count` is a Python number."""

    def matcher(self, row: Int[Array, ""], count: int) -> Float[Array, "S 2"]:
        """Draws the points at which all queries and segments of an image are compared."""

    def oversampled(self, row: Int[Array, ""], slot: Int[Array, ""], count: int) -> Float[Array, "S 2"]:
        """Draws the candidates for a segment's most uncertain points."""

    def uniform(self, row: Int[Array, ""], slot: Int[Array, ""], count: int) -> Float[Array, "S 2"]:
        """Draws a segment's remaining points."""


class RandomDraws(NamedTuple):
    """Uniform draws that depend on the image, not on where and when it is computed.

    Each follows from the image's position in the stream, the decoder's output and the segment's slot. Draws are therefore
    the same on any number of devices and after a resume.
    """

    seed: Key[Array, ""]
    positions: Int[Array, " B"]
    """`Batch.positions`."""
    output: Int[Array, ""]
    """The index of the decoder's prediction."""

    def matcher(self, row: Int[Array, ""], count: int) -> Float[Array, "S 2"]:
        return jax.random.uniform(self._key(row, 0), (count, 2), jnp.float32)

    def oversampled(self, row: Int[Array, ""], slot: Int[Array, ""], count: int) -> Float[Array, "S 2"]:
        return jax.random.uniform(jax.random.fold_in(self._key(row, 1), slot), (count, 2), jnp.float32)

    def uniform(self, row: Int[Array, ""], slot: Int[Array, ""], count: int) -> Float[Array, "S 2"]:
        return jax.random.uniform(jax.random.fold_in(self._key(row, 2), slot), (count, 2), jnp.float32)

    def _key(self, row: Int[Array, ""], purpose: int) -> Key[Array, ""]:
        key = jax.random.fold_in(self.seed, self.positions[row])
        return jax.random.fold_in(jax.random.fold_in(key, self.output), purpose)


class Pairs(NamedTuple):
    """Matched segments of a batch, packed: the first `count` of P are real, the others have row, slot and query 0."""

    rows: Int[Array, " P"]
    slots: Int[Array, " P"]
    queries: Int[Array, " P"]
    count: Int[Array, ""]


def pack(queries: Int[Array, "B G"]) -> Pairs:
    """Packs the slots that have a query, not -1, in the order of the batch. P is B * G, rounded up to a `CHUNK`."""
    batch, slots = queries.shape
    flat = jnp.pad(queries.reshape(-1), (0, -batch * slots % CHUNK), constant_values=-1)
    real = flat >= 0
    order = jnp.argsort(~real, stable=True).astype(jnp.int32)
    order = jnp.where(real[order], order, 0)
    return Pairs(order // slots, order % slots, jnp.maximum(flat[order], 0), jnp.sum(real, dtype=jnp.int32))


def corners(points: Float[Array, "*S 2"], shape: tuple[int, int]) -> tuple[Int[Array, "*S 4"], Float[Array, "*S 4"]]:
    """Returns the four cells around each point, as flat indices into an h x w map, and their weights, zero outside."""
    height, width = shape
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    x0, y0 = jnp.floor(x), jnp.floor(y)
    right, low = x - x0, y - y0
    columns = jnp.stack([x0, x0 + 1, x0, x0 + 1], axis=-1).astype(jnp.int32)
    rows = jnp.stack([y0, y0, y0 + 1, y0 + 1], axis=-1).astype(jnp.int32)
    weights = jnp.stack([(1 - low) * (1 - right), (1 - low) * right, low * (1 - right), low * right], axis=-1)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    indices = jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1)
    return indices, jnp.where(inside, weights, 0)


def sample(images: Float[Array, "B h w C"], points: Float[Array, "B S 2"]) -> Float[Array, "B S C"]:
    """Samples all channels of each image at its points."""
    indices, weights = corners(points, images.shape[1:3])
    flat = images.reshape(images.shape[0], -1, images.shape[-1])
    read = (jnp.take_along_axis(flat, indices[..., k, None], axis=1) * weights[..., k, None] for k in range(4))
    return functools.reduce(jnp.add, read)


def sample_segments(
    segment_map: UInt8[Array, "B H W"], points: Float[Array, "B S 2"], count: int
) -> Float[Array, "B S G"]:
    """Samples the binary masks of slots 0..count-1 at the points of their images."""
    ids, weights = _corner_ids(segment_map, points)
    slots = jnp.arange(count, dtype=jnp.int32)[None, None, :]
    read = (jnp.where(ids[..., k, None] == slots, weights[..., k, None], 0) for k in range(4))
    return functools.reduce(jnp.add, read)


def pair_targets(
    segment_map: UInt8[Array, "B H W"], pairs: Pairs, points: Float[Array, "P S 2"]
) -> Float[Array, "P S"]:
    """Samples the binary mask of each pair's segment at its own points; zero for pairs that are not real."""

    def read(chunk: Pairs, start: Int[Array, ""]) -> Float[Array, "N S"]:
        ids, weights = _corner_ids(segment_map[chunk.rows], _part(points, start))
        return jnp.sum(jnp.where(ids == chunk.slots[:, None, None], weights, 0), axis=-1)

    return _for_each_chunk(read, pairs, points.shape[:2])


def _corner_ids(
    segment_map: UInt8[Array, "N H W"], points: Float[Array, "N S 2"]
) -> tuple[Int[Array, "N S 4"], Float[Array, "N S 4"]]:
    indices, weights = corners(points, segment_map.shape[1:])
    flat = segment_map.reshape(segment_map.shape[0], -1)
    ids = jnp.take_along_axis(flat, indices.reshape(indices.shape[0], -1), axis=1)
    return ids.reshape(indices.shape).astype(jnp.int32), weights


def choose_points(
    mask_logits: Float[Array, "B h w Q"],
    pairs: Pairs,
    draws: PointDraws,
    *,
    num_points: int,
    oversampled: int,
    kept: int,
) -> Float[Array, "P S 2"]:
    """Chooses for each pair the `kept` of `oversampled` points whose mask logits are nearest to zero, and uniform ones.

    Their order does not matter, since losses sum over them. No gradient passes.
    """
    mask_logits = lax.stop_gradient(mask_logits)

    def choose(chunk: Pairs, start: Int[Array, ""]) -> Float[Array, "N S 2"]:
        del start
        candidates = jax.vmap(lambda row, slot: draws.oversampled(row, slot, oversampled))(chunk.rows, chunk.slots)
        certainty = jnp.abs(_read(_masks(mask_logits, chunk), candidates))
        nearest = lax.top_k(-certainty, kept)[1]
        uncertain = jnp.take_along_axis(candidates, nearest[..., None], axis=1)
        rest = num_points - kept
        uniform = jax.vmap(lambda row, slot: draws.uniform(row, slot, rest))(chunk.rows, chunk.slots)
        return jnp.concatenate([uncertain, uniform], axis=1)

    return _for_each_chunk(choose, pairs, (pairs.rows.shape[0], num_points, 2))


def sample_pairs(
    mask_logits: Float[Array, "B h w Q"], pairs: Pairs, points: Float[Array, "P S 2"]
) -> Float[Array, "P S"]:
    """Samples the mask logits of each pair's query at its own points; zero for pairs that are not real.

    Only the logits get a gradient. Both passes process the real pairs alone, one chunk after the other.
    """
    return _sample_pairs(mask_logits.shape, mask_logits, pairs, points)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sample_pairs(shape: tuple[int, ...], mask_logits, pairs: Pairs, points):
    def read(chunk: Pairs, start: Int[Array, ""]) -> Float[Array, "N S"]:
        return _read(_masks(mask_logits, chunk), _part(points, start))

    return _for_each_chunk(read, pairs, points.shape[:2])


def _sample_pairs_forward(shape, mask_logits, pairs, points):
    return _sample_pairs(shape, mask_logits, pairs, points), (pairs, points)


def _sample_pairs_backward(shape, residuals, cotangent):
    pairs, points = residuals

    def add(i: Int[Array, ""], gradient: Float[Array, "B h w Q"]) -> Float[Array, "B h w Q"]:
        start = i * CHUNK
        chunk, real = _chunk(pairs, start)
        indices, weights = corners(_part(points, start), shape[1:3])
        weights = weights * jnp.where(real[:, None], _part(cotangent, start), 0)[..., None]
        of_chunk = jnp.arange(CHUNK, dtype=jnp.int32)[:, None]
        masks = jnp.zeros((CHUNK, shape[1] * shape[2]), cotangent.dtype)
        masks = masks.at[of_chunk, indices.reshape(CHUNK, -1)].add(weights.reshape(CHUNK, -1))
        return gradient.at[chunk.rows, :, :, chunk.queries].add(masks.reshape(CHUNK, *shape[1:3]))

    gradient = lax.fori_loop(np.int32(0), _trips(pairs), add, jnp.zeros(shape, cotangent.dtype))
    return gradient, None, None


_sample_pairs.defvjp(_sample_pairs_forward, _sample_pairs_backward)


def _for_each_chunk(visit, pairs: Pairs, shape: tuple[int, ...]) -> Float[Array, "P ..."]:
    """Returns an array [P, ...] of `visit(chunk, start)` for each chunk of real pairs, and zeros for the others."""

    def step(i: Int[Array, ""], found: Float[Array, "P ..."]) -> Float[Array, "P ..."]:
        start = i * CHUNK
        chunk, real = _chunk(pairs, start)
        value = visit(chunk, start)
        value = jnp.where(real.reshape(-1, *[1] * (value.ndim - 1)), value, 0)
        return lax.dynamic_update_slice_in_dim(found, value, start, axis=0)

    return lax.fori_loop(np.int32(0), _trips(pairs), step, jnp.zeros(shape, jnp.float32))


def _trips(pairs: Pairs) -> Int[Array, ""]:
    return (pairs.count + CHUNK - 1) // CHUNK


def _part(x: Array, start: Int[Array, ""]) -> Array:
    return lax.dynamic_slice_in_dim(x, start, CHUNK, axis=0)


def _chunk(pairs: Pairs, start: Int[Array, ""]) -> tuple[Pairs, Array]:
    """Returns the pairs of a chunk, and which of them are real."""
    real = start + jnp.arange(CHUNK, dtype=jnp.int32) < pairs.count
    return Pairs(*(_part(x, start) for x in pairs[:3]), pairs.count), real


def _masks(mask_logits: Float[Array, "B h w Q"], chunk: Pairs) -> Float[Array, "N h w"]:
    """Copies the masks of the pairs' queries: each is sampled many times, and its own memory fits into a cache."""
    return mask_logits[chunk.rows, :, :, chunk.queries]


def _read(masks: Float[Array, "N h w"], points: Float[Array, "N S 2"]) -> Float[Array, "N S"]:
    indices, weights = corners(points, masks.shape[1:])
    values = jnp.take_along_axis(masks.reshape(masks.shape[0], -1), indices.reshape(indices.shape[0], -1), axis=1)
    return jnp.sum(values.reshape(indices.shape) * weights, axis=-1)
