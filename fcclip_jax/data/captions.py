"""Images with captions: what contrastive pre-training reads, and its endless stream of batches.

Positions count the images of all steps. Position p is the image at place p mod n of epoch p // n, shuffled by (seed, epoch)
as in `pipeline`, and drawn with a generator seeded by (seed, p). A step's images do not depend on the number of processes or
workers, and the stream's whole state is the number of the step.
"""

import functools
import zlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from fcclip_jax.conventions import round_up
from fcclip_jax.data.pipeline import StepStream, open_stream, order
from fcclip_jax.models.descriptions import TextDescription
from fcclip_jax.structs import CaptionBatch
from fcclip_jax.text.tokenizer import table_rows, tokenize

MOST_NAMES = 16
"""Names of an image, or of a text, that are compared; further ones are left out."""
NO_NAME = -1


class Caption(NamedTuple):
    """A text that is true of an image."""

    text: str
    names: tuple[str, ...] = ()
    """What it names: the text is true of every image that has all of these names. A text without names is true of the
    images that have the same caption, whatever its case."""


class CaptionExample(NamedTuple):
    """An image of the requested size with its captions."""

    image: UInt8[np.ndarray, "S S 3"]
    names: tuple[str, ...]
    """Everything that is known to be in the image."""
    captions: tuple[Caption, ...]
    """At least one; the stream takes the first ones."""


@runtime_checkable
class CaptionSource(Protocol):
    """Images with captions. `name` is the source's in messages; its length is the number of images in an epoch."""

    name: str

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator, side: int) -> CaptionExample:
        """Returns image `index`, cropped or composed by draws from `rng` to side x side pixels.

        Raises OSError or ValueError, in one sentence, for an image that cannot be read.
        """
        ...


class Size(NamedTuple):
    """What a step reads; the steps take the configured sizes by turns."""

    side: int
    """Pixels of the square images."""
    images: int
    """Images in a step, over all processes."""
    texts: int
    """Captions of each image."""


class CaptionStep(NamedTuple):
    """One process's part of one step."""

    batch: CaptionBatch
    skipped: tuple[str, ...]
    """One line for each image that could not be read, and was replaced by the stream's next."""


def caption_batches(
    source: CaptionSource,
    text: TextDescription,
    sizes: Sequence[Size],
    *,
    first_steps: int = 0,
    process_index: int,
    process_count: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
) -> StepStream[CaptionStep]:
    """Opens the stream at step `start`.

    text: the text tower that reads the captions.
    sizes: the steps take them by turns.
    first_steps: the number of steps, before the turns begin, that read the first size alone.
    workers: processes that load; 0 loads in two threads of this process.

    Raises:
        ValueError: the processes cannot share a batch evenly, or the source is empty. Its steps raise ValueError if more
            than 1 % of the images have been unreadable so far, or if the text tower lacks a token of a caption.
    """
    for size in sizes:
        if size.images % process_count:
            raise ValueError(f"{size.images} images of {size.side} pixels do not divide over {process_count} processes")
    if not len(source):
        raise ValueError(f"{source.name} has no images")
    load = functools.partial(_load_step, source, text, tuple(sizes), first_steps, process_index, process_count, seed)
    return open_stream(load, start, np.iinfo(np.int32).max // max(size.images for size in sizes), workers, len(source))


def _load_step(
    source: CaptionSource,
    text: TextDescription,
    sizes: tuple[Size, ...],
    first_steps: int,
    process_index: int,
    process_count: int,
    seed: int,
    step: int,
) -> CaptionStep:
    size, before = _place(step, sizes, first_steps)
    local = size.images // process_count
    skipped: list[str] = []
    examples = []
    for position in range(before + process_index * local, before + (process_index + 1) * local):
        examples.append(_load(source, seed, position, size.side, skipped))
    # An image with fewer captions repeats them, so that every image has as many rows.
    captions = [example.captions[i % len(example.captions)] for example in examples for i in range(size.texts)]
    # The names of the step's own captions come first: they count even if an image has more names than MOST_NAMES.
    image_names = [
        tuple(dict.fromkeys([*_names(example.captions[: size.texts]), *example.names, *_names(example.captions)]))
        for example in examples
    ]
    batch = CaptionBatch(
        images=np.stack([example.image for example in examples]),
        image_names=_ids(image_names),
        tokens=_tokens([caption.text for caption in captions], text, cut=process_count == 1),
        text_names=_ids([_names([caption]) for caption in captions]),
    )
    return CaptionStep(batch, tuple(skipped))


def _place(step: int, sizes: tuple[Size, ...], first_steps: int) -> tuple[Size, int]:
    """Returns the size that a step reads, and the number of images in all steps before it."""
    if step < first_steps:
        return sizes[0], step * sizes[0].images
    turns, turn = divmod(step - first_steps, len(sizes))
    before = first_steps * sizes[0].images + turns * sum(size.images for size in sizes)
    return sizes[turn], before + sum(size.images for size in sizes[:turn])


def _load(source: CaptionSource, seed: int, position: int, side: int, skipped: list[str]) -> CaptionExample:
    """Loads a position's image, or the first readable one after it; adds a line to `skipped` for each that is not."""
    first = len(skipped)
    while True:
        epoch, place = divmod(position + len(skipped) - first, len(source))
        index = int(order(seed, epoch, len(source))[place])
        try:
            return source.example(index, np.random.default_rng([seed, position, 2]), side)
        except (OSError, ValueError) as error:
            skipped.append(str(error))
            if len(skipped) - first > 100:
                raise ValueError(f"100 images in a row cannot be read, the last: {error}; repair the data") from None


def _names(captions: Sequence[Caption]) -> tuple[str, ...]:
    """Returns what captions name; one without names is its own name."""
    return tuple(name for caption in captions for name in caption.names or (caption.text,))


def _tokens(texts: list[str], description: TextDescription, cut: bool) -> Int[np.ndarray, "N L"]:
    """Tokenises captions.

    cut: removes what is padding in all of them: attention is causal, so nothing after the end matters. Lengths are
        multiples of 8, so that the steps have few programs. Processes must have the same length, so several cannot cut.
    """
    tokens = tokenize(texts, description.context_length)
    if description.token_ids is not None:
        tokens = table_rows(tokens, description.token_ids, texts)
    if not cut:
        return tokens
    longest = int(np.argmax(tokens, axis=1).max()) + 1
    return tokens[:, : min(round_up(longest, 8), description.context_length)]


def _ids(names: Sequence[tuple[str, ...]]) -> Int[np.ndarray, "N M"]:
    """Hashes names to 31 bits, which makes them comparable across processes; rows are padded with NO_NAME."""
    ids = np.full((len(names), MOST_NAMES), NO_NAME, np.int32)
    for row, own in zip(ids, names, strict=True):
        hashes = [zlib.crc32(name.lower().encode()) & 0x7FFFFFFF for name in own[:MOST_NAMES]]
        row[: len(hashes)] = hashes
    return ids
