"""Prepares images for the network: decodes them in advance, resizes them, and gathers batches of one shape."""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from fcclip_jax.conventions import STRIDE, round_up
from fcclip_jax.data.images import ImageLike, load_image, pad, resize, resized_shape
from fcclip_jax.inference import buckets as bucket_lists
from fcclip_jax.inference.buckets import Shapes
from fcclip_jax.inference.programs import Inputs, View
from fcclip_jax.structs import checked


class Photo(NamedTuple):
    """A decoded image."""

    position: int
    """Its position in the sequence of images."""
    size: tuple[int, int]
    """(height, width) as it was read."""
    image: UInt8[np.ndarray, "H W 3"]
    """At the size of the results."""
    resized: UInt8[np.ndarray, "h w 3"]
    """At the size that the network reads."""
    bucket: tuple[int, int]


Failure = ValueError | OSError | MemoryError
"""Why an image cannot be segmented while others can."""


class Unreadable(NamedTuple):
    """An image that cannot be prepared, and the reason."""

    position: int
    error: Failure


class PhotoBatch(NamedTuple):
    """Images that one program computes, in one batch or one by one."""

    shapes: Shapes
    photos: list[Photo]


class Feeder:
    """Turns images into batches; few shapes occur, however many sizes the images have."""

    def __init__(
        self,
        short_side: int,
        max_side: int,
        buckets: Sequence[tuple[int, int]] | None = None,
        output_size: str | int = "image",
    ):
        """Chooses the buckets; the arguments are `Segmenter`'s.

        Raises:
            ValueError: the sides, the buckets or the size of the results do not fit.
        """
        if output_size not in ("image", "network") and not (type(output_size) is int and output_size >= 1):
            raise ValueError(f'output_size is {output_size!r}; choose "image", "network" or a number of pixels')
        if not 1 <= short_side <= max_side:
            raise ValueError(
                f"short_side {short_side} and max_side {max_side} do not fit; choose 1 <= short_side <= max_side"
            )
        chosen = bucket_lists.image_buckets(short_side, max_side) if buckets is None else tuple(buckets)
        self.buckets = bucket_lists.check_buckets(chosen)
        if not self.buckets:
            raise ValueError(
                "buckets is empty; give at least one (height, width), or None for a few that follow the sides"
            )
        self.short_side, self.max_side, self.output_size = short_side, max_side, output_size
        self._shared: dict[Shapes, Shapes] = {}

    def expect(self, sizes: Iterable[tuple[int, int]], limit: int) -> None:
        """Chooses shapes for images of these (height, width), so that at most `limit` programs serve them if possible.

        Raises:
            ValueError: a size fits none of the buckets.
        """
        counts = Counter(map(self._own_shapes, sizes))
        self._shared = bucket_lists.share_programs(counts, self.buckets, limit)

    def shapes(self, size: tuple[int, int]) -> Shapes:
        """Returns the shapes of the program for an image of this (height, width).

        Raises:
            ValueError: the size fits none of the buckets.
        """
        needed = self._own_shapes(size)
        return self._shared.get(needed, needed)

    def batches(self, images: Iterable[ImageLike], size: int, ahead: int) -> Iterator[Unreadable | PhotoBatch]:
        """Yields batches of `size` images that share their shapes; the last batch of each shape may be smaller.

        ahead: the number of images that are decoded ahead of the computation.
        """
        waiting: dict[Shapes, list[Photo]] = defaultdict(list)
        for item in self._decoded(images, ahead):
            if isinstance(item, Unreadable):
                yield item
                continue
            shapes = self.shapes(item.size)
            waiting[shapes].append(item)
            if len(waiting[shapes]) == size:
                yield PhotoBatch(shapes, waiting.pop(shapes))
        for shapes, photos in waiting.items():
            yield PhotoBatch(shapes, photos)

    def decode(self, position: int, image: ImageLike) -> Photo | Unreadable:
        """Reads an image, resizes it and chooses its bucket."""
        try:
            pixels = load_image(image)
            height, width = pixels.shape[:2]
            shape = resized_shape(height, width, self.short_side, self.max_side)
            bucket = bucket_lists.choose_bucket(shape, self.buckets)
            small = resize(pixels, shape)
            size = self._output_shape(height, width)
            image = pixels if size == (height, width) else np.array(resize(pixels, size))  # which may be written to
        except (ValueError, OSError, MemoryError) as error:
            return Unreadable(position, error)
        return Photo(position, (height, width), image, small, bucket)

    def view(self, photos: Sequence[Photo], bucket: tuple[int, int], short_side: int, *, size: int) -> View:
        """Returns the images of a batch at another size, in arrays whose shape follows from the bucket."""
        share = short_side / self.short_side
        # A side that was rounded up to fill the bucket may be rounded up again here.
        sides = [math.ceil((side + 1) * share) + 1 for side in bucket]
        shape = round_up(sides[0], STRIDE), round_up(sides[1], STRIDE)
        max_side = int(self.max_side * share)
        small = []
        for photo in photos:
            height, width = photo.image.shape[:2]
            resized = resize(photo.image, resized_shape(height, width, short_side, max_side))
            small.append(photo._replace(resized=resized))
        inputs = stack(small, shape, size=size)
        return View(inputs.images, inputs.image_hw)

    def _own_shapes(self, size: tuple[int, int]) -> Shapes:
        """Returns the smallest shapes, which the image may have to share."""
        resized = resized_shape(*size, self.short_side, self.max_side)
        return Shapes(bucket_lists.choose_bucket(resized, self.buckets), bucket_lists.canvas(self._output_shape(*size)))

    def _output_shape(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (height, width) of the results for an image of this size."""
        if self.output_size == "network":
            return resized_shape(height, width, self.short_side, self.max_side)
        if isinstance(self.output_size, str):
            return height, width
        side = min(self.output_size, max(height, width))
        return resized_shape(height, width, side, side)

    def _decoded(self, images: Iterable[ImageLike], ahead: int) -> Iterator[Photo | Unreadable]:
        with ThreadPoolExecutor(max_workers=2) as pool:
            pending = []
            for position, image in enumerate(images):
                # The caller may reuse the array for the next image.
                image = image.copy() if isinstance(image, np.ndarray) else image
                pending.append(pool.submit(self.decode, position, image))
                if not isinstance(image, (str, os.PathLike, bytes, np.ndarray)):
                    # Asking for the next image may change this one: the frames of an animation are one PIL image.
                    wait(pending[-1:])
                if len(pending) > ahead:
                    yield pending.pop(0).result()
            for future in pending:
                yield future.result()


def stack(photos: Sequence[Photo], bucket: tuple[int, int], *, size: int) -> Inputs:
    """Returns images as arrays of the bucket's shape; fewer than `size` are filled up with copies of the last."""
    photos = [*photos, *[photos[-1]] * (size - len(photos))]
    return checked(
        Inputs(
            images=np.stack([pad(photo.resized, bucket) for photo in photos]),
            image_hw=np.asarray([photo.resized.shape[:2] for photo in photos], np.int32),
            output_hw=np.asarray([photo.image.shape[:2] for photo in photos], np.int32),
        )
    )
