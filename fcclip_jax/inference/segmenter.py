"""The Python API: load, set_classes, call, draw."""

import functools
import math
import os
import pathlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

from fcclip_jax import caching, checkpoint
from fcclip_jax.conventions import MAX_SIDE, OVERLAP_THRESHOLD, SHORT_SIDE, STRIDE, TASKS, check_tasks, round_up
from fcclip_jax.data.images import ImageLike, load_image, pad, resize, resized_shape
from fcclip_jax.inference import buckets as bucket_lists
from fcclip_jax.inference import sweep as sweeping
from fcclip_jax.inference.buckets import Shapes
from fcclip_jax.inference.postprocess import Postprocessed, postprocess, semantic_scores
from fcclip_jax.inference.results import Result, make_result
from fcclip_jax.inference.sweep import View, Way
from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.models.fcclip import FCCLIP, normalize_images
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.structs import TextClassifier
from fcclip_jax.text.classifier import TextEncoder
from fcclip_jax.text.vocabulary import Vocabulary


class Segmenter:
    """Segments photographs in any words.

        segmenter = Segmenter.load("checkpoint_dir")
        segmenter.set_classes(["astronaut", "space shuttle, rocket", "flag"])
        result = segmenter("photo.jpg")
        result.panoptic.segments; result.semantic(); result.instances()
        result.draw().save("out.png")

    Programs are compiled once for each bucket of image sizes; neither a new vocabulary nor a new size inside a bucket
    compiles anything.
    """

    def __init__(
        self,
        model: FCCLIP,
        training: Vocabulary,
        *,
        fingerprint: str,
        short_side: int = SHORT_SIDE,
        max_side: int = MAX_SIDE,
        buckets: Sequence[tuple[int, int]] | None = None,
        batch_size: int = 1,
        batched: bool | None = None,
        devices: Sequence[jax.Device] | None = None,
        cache_dir: pathlib.Path | None = None,
    ):
        """`load` and `random` are the usual ways here.

        training: the vocabulary that the model was trained in, whose classes count as seen.
        fingerprint: names the text tower's weights, for the embeddings kept in `cache_dir` (None keeps none).
        short_side, max_side: images are resized to the first, or less where the longer side would pass the second.
        buckets: (height, width) of the arrays that images are padded into; by default a few that follow the sides.
        batch_size: images in a batch; more than one pays on accelerators.
        batched: whether one program computes a batch, in equal parts on the devices, or image by image, by a program that is
            compiled for each device: results are then the same, to the last bit, in any batch and on any number of devices.
            By default, batched except on a CPU, where it saves nothing.
        devices: what shares a batch; by default the first alone.
        """
        if not 1 <= short_side <= max_side:
            raise ValueError(f"short_side {short_side} and max_side {max_side} must rise from 1")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self._places: list[jax.Device | NamedSharding | None] = [None] if devices is None else list(devices)
        """Where a program runs; None is where JAX puts it."""
        devices = jax.local_devices()[:1] if devices is None else list(devices)
        if batched is None:
            batched = devices[0].platform != "cpu"
        if batched and batch_size % len(devices):
            raise ValueError(f"a batch of {batch_size} cannot be spread evenly over {len(devices)} devices")
        self.ensemble = model.ensemble
        self.training, self.short_side, self.max_side, self.batch_size = training, short_side, max_side, batch_size
        chosen = bucket_lists.image_buckets(short_side, max_side) if buckets is None else tuple(buckets)
        self.buckets = bucket_lists.check_buckets(chosen)
        if not self.buckets:
            raise ValueError(
                "buckets is empty; give at least one (height, width), or None for a few that follow the sides"
            )
        self._words: _Words | None = None
        self._shared: dict[Shapes, Shapes] = {}
        self._encoder = TextEncoder(model.clip.text, fingerprint=fingerprint, cache_dir=cache_dir)
        # Only the text encoder holds the text tower: the image program never reads it.
        image_model = nnx.clone(model, variables=False)
        del image_model.clip.text
        graphdef, state = nnx.split(image_model)
        segment, sweep = (functools.partial(program, graphdef) for program in (_segment, sweeping.sweep))
        self._rows = batch_size if batched else 1
        """Images that a program takes."""
        if batched and len(devices) > 1:
            mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))
            self._places = [NamedSharding(mesh, PartitionSpec())]
            whole, parts = PartitionSpec(), PartitionSpec("data")
            segment = _spread(segment, mesh, (whole, *[parts] * 3, *[whole] * 3, parts))
            sweep = _spread(sweep, mesh, (whole, whole, *[parts] * 4, *[whole] * 3))
        self._states = self._put(state)
        self._program = jax.jit(segment, static_argnames=("canvas", "tasks", "before_resize"))
        self._sweep_program = jax.jit(sweep, static_argnames=("second_graphdef", "canvas", "ways"))
        self._scores_program = jax.jit(
            functools.partial(_score, graphdef), static_argnames=("canvas", "classes", "before_resize")
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> "Segmenter":
        """From a checkpoint directory (local, or anywhere that etils.epath reads, such as gs://).

        options: `short_side`, `max_side`, `buckets`, `batch_size`, `batched`, `devices`, as in the constructor.
        """
        caching.keep_compiled_programs()
        loaded = checkpoint.load(path)
        options.setdefault("cache_dir", caching.cache_dir() / "text")
        return cls(loaded.model, loaded.training_vocabulary, fingerprint=loaded.text_sha256, **options)

    @classmethod
    def random(cls, seed: int = 0, **options: Any) -> "Segmenter":
        """A small model with reproducible random weights: it shows how things work, and finds nothing."""
        caching.keep_compiled_programs()
        training = Vocabulary.load("coco_panoptic")
        return cls(random_model(SMALL, seed), training, fingerprint=f"random {seed}", **options)

    def set_classes(self, classes: str | Sequence[str] | Vocabulary, *, stuff: Sequence[str] = ()) -> None:
        """Chooses the words: a shipped vocabulary's name, a list of words, or a Vocabulary.

        Synonyms share a string, parted by commas: "cat, kitten". Words are things unless `stuff` names them.
        """
        if isinstance(classes, (str, Vocabulary)):
            if stuff:
                raise ValueError(
                    "stuff goes with a list of words; a vocabulary says itself which of its classes are stuff"
                )
            vocabulary = Vocabulary.load(classes) if isinstance(classes, str) else classes
        else:
            vocabulary = Vocabulary.from_words(classes, stuff)
        if not vocabulary.classes:
            raise ValueError(f"the vocabulary {vocabulary.name!r} has no classes")
        text = self._encoder.classifier(vocabulary, self.training)
        is_thing = np.zeros(text.seen.shape, bool)
        is_thing[: len(vocabulary.classes)] = vocabulary.thing_mask
        self._words = _Words(vocabulary, self._put((text, is_thing)))

    def expect(self, sizes: Iterable[tuple[int, int]], programs: int = 6) -> None:
        """Tells the (height, width) of the images to come: where these many programs would not do, sizes share them.

        Results stay as they are, up to rounding. Sizes that were not told are served as ever.

        Raises:
            ValueError: a size fits none of the buckets.
        """
        needs = []
        for size in sizes:
            bucket = bucket_lists.choose_bucket(resized_shape(*size, self.short_side, self.max_side), self.buckets)
            needs.append(Shapes(bucket, bucket_lists.canvas(size)))
        self._shared = bucket_lists.share_programs(Counter(needs), self.buckets, programs)

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Puts new values, by `named_variables`' names, in the image model's place of old ones.

        Nothing is compiled anew. The words that were set stay as they are: the text tower's weights are not for changing.

        Raises:
            ValueError: the image model has no such name, or the value is of another shape.
        """
        values = dict(weights)
        filled = []
        for path, variable in nnx.to_flat_state(self._states[0]):
            name = ".".join(map(str, path))
            value = values.pop(name, None)
            if value is not None and np.shape(value) != variable.shape:
                raise ValueError(f"{name} is of shape {variable.shape}, and its new value of {np.shape(value)}")
            if value is not None:
                variable = variable.replace(np.asarray(value, variable.dtype))
            filled.append((path, variable))
        if values:
            raise ValueError(f"the image model has no variable {next(iter(values))}")
        self._states = self._put(nnx.from_flat_state(filled))

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The classes that are looked for."""
        return self._words and self._words.vocabulary

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        tasks: Collection[str] = TASKS,
        overlap_threshold: float = OVERLAP_THRESHOLD,
    ) -> Result | list[Result]:
        """Segments one image (a path, a PIL image or an RGB array), or a list of them into a list.

        tasks: any of panoptic, semantic, instances; fewer are faster.
        overlap_threshold: the least share of its own mask that a panoptic segment must keep.
        """
        single = not isinstance(images, (list, tuple))
        results: dict[int, Result] = {}
        many = [images] if single else images
        for index, result in self.stream(many, tasks=tasks, overlap_threshold=overlap_threshold):
            if isinstance(result, Exception):
                raise result
            results[index] = result
        return results[0] if single else [results[index] for index in range(len(results))]

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        tasks: Collection[str] = TASKS,
        overlap_threshold: float = OVERLAP_THRESHOLD,
        semantic_before_resize: bool = False,
        offered: Callable[[int], Sequence[int]] | None = None,
    ) -> Iterator[tuple[int, Result | ValueError | OSError]]:
        """Yields (index, result) as images are done, out of order where buckets fill out of order.

        An image that cannot be read yields its error instead, and the others go on. The words are those of the start.

        semantic_before_resize: score at the network's size and resize the scores, as the official semantic-only configs do.
        offered: the classes that the image of this index may have, counted from 0; by default all of them.
        """
        words, tasks = self._required_words(), check_tasks(tasks)
        if not 0 <= overlap_threshold <= 1:
            raise ValueError(f"overlap_threshold is {overlap_threshold}; it is a share, from 0 to 1")
        dispatch = functools.partial(
            self._dispatch,
            words=words,
            tasks=tasks,
            overlap_threshold=overlap_threshold,
            before_resize=semantic_before_resize,
            offered=offered,
        )
        yield from self._results(
            images, dispatch, lambda item, output: make_result(item.image, words.vocabulary, output)
        )

    def sweep(
        self,
        images: Iterable[ImageLike],
        ways: Sequence[Way],
        *,
        second_trunk: nnx.Module | None = None,
        overlap_threshold: float = OVERLAP_THRESHOLD,
    ) -> Iterator[tuple[int, list[Result] | ValueError | OSError]]:
        """As `stream`, with a panoptic result for each way to classify the masks, which are found once an image.

        second_trunk: another model's `clip.image`, for the ways that ask for it; the text tower must be the same.
        """
        words = self._required_words()
        second_graphdef, second_state = nnx.split(second_trunk) if second_trunk is not None else (None, None)
        second_states = self._put(second_state)
        sides = sorted({way.short_side for way in ways} - {None})

        def dispatch(
            place: int, bucket: tuple[int, int], canvas: tuple[int, int], items: list[_Prepared]
        ) -> Postprocessed:
            return self._sweep_program(
                self._states[place],
                second_states[place],
                *self._batch(items, bucket, size=self._rows),
                {side: self._view(items, bucket, side) for side in sides},
                *words.arrays[place],
                np.float32(overlap_threshold),
                second_graphdef=second_graphdef,
                canvas=canvas,
                ways=tuple(ways),
            )

        def finish(item: _Prepared, output: Postprocessed) -> list[Result]:
            parts = (jax.tree.map(lambda x, i=i: x[i], output) for i in range(len(ways)))
            return [make_result(item.image, words.vocabulary, part) for part in parts]

        yield from self._results(images, dispatch, finish)

    def _results(
        self,
        images: Iterable[ImageLike],
        dispatch: Callable[[int, tuple[int, int], tuple[int, int], list["_Prepared"]], Postprocessed],
        finish: Callable[["_Prepared", Postprocessed], Any],
    ) -> Iterator[tuple[int, Any]]:
        """The devices compute a batch while the one before it is fetched and finished here.

        dispatch: sets a place to work on (bucket, canvas, items).
        finish: makes a result of one image's part of the output.
        """

        def finished(parts: list[tuple[list[_Prepared], Postprocessed]]) -> Iterator[tuple[int, Any]]:
            for items, output in parts:
                output = jax.device_get(output)
                for row, item in enumerate(items):
                    yield item.index, finish(item, jax.tree.map(lambda x, row=row: x[row], output))

        underway: list[tuple[list[_Prepared], Postprocessed]] = []
        for work in self._batches(images):
            if isinstance(work, _Prepared):
                yield work.index, work.error
                continue
            shapes, items = work
            parts = [items[start : start + self._rows] for start in range(0, len(items), self._rows)]
            before, underway = underway, [(part, dispatch(place, *shapes, part)) for place, part in enumerate(parts)]
            yield from finished(before)
        yield from finished(underway)

    def _batches(self, images: Iterable[ImageLike]) -> Iterator["_Prepared | tuple[Shapes, list[_Prepared]]"]:
        """Images that share their shapes, together; alone, each that cannot be read."""
        waiting: dict[Shapes, list[_Prepared]] = defaultdict(list)
        for item in self._prepared(images):
            if isinstance(item.error, Exception):
                yield item
                continue
            needed = Shapes(item.bucket, bucket_lists.canvas(item.image.shape[:2]))
            shapes = self._shared.get(needed, needed)
            waiting[shapes].append(item)
            if len(waiting[shapes]) == self._rows * len(self._places):
                yield shapes, waiting.pop(shapes)
        yield from waiting.items()

    def semantic_scores(self, image: ImageLike, *, before_resize: bool = False) -> Float[np.ndarray, "K H W"]:
        """Every class's score at every pixel of one image: large, and compiled for each number of classes.

        before_resize: score at the network's size and resize the scores, as the official semantic-only configs do.
        """
        words = self._required_words()
        (item,) = self._prepared([image])
        if item.error is not None:
            raise item.error
        height, width = item.image.shape[:2]
        scores = self._scores_program(
            self._states[0],
            *self._batch([item], item.bucket, size=1),
            words.arrays[0][0],
            canvas=bucket_lists.canvas((height, width)),
            classes=len(words.vocabulary.classes),
            before_resize=before_resize,
        )
        return np.moveaxis(np.array(np.asarray(scores)[0, :height, :width]), -1, 0)

    def _put(self, tree: Any) -> list[Any]:
        """The same in each place. None stays where it is: a program is compiled anew for arrays that may not move."""
        return [jax.device_put(tree, place) for place in self._places]

    def _required_words(self) -> "_Words":
        if self._words is None:
            raise ValueError("there are no classes to look for yet; call set_classes first")
        return self._words

    def _prepared(self, images: Iterable[ImageLike]) -> Iterator["_Prepared"]:
        """Images decoded and resized, a few ahead of the computation."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            pending, numbered = [], enumerate(images)
            for index, image in numbered:
                pending.append(pool.submit(self._prepare, index, image))
                if len(pending) > self.batch_size + 1:
                    yield pending.pop(0).result()
            for future in pending:
                yield future.result()

    def _prepare(self, index: int, image: ImageLike) -> "_Prepared":
        try:
            pixels = load_image(image)
            small = resize(pixels, resized_shape(*pixels.shape[:2], self.short_side, self.max_side))
            bucket = bucket_lists.choose_bucket(small.shape[:2], self.buckets)
        except (ValueError, OSError) as error:
            return _Prepared(index, error=error)
        return _Prepared(index, pixels, small, bucket)

    def _batch(
        self, items: list["_Prepared"], bucket: tuple[int, int], *, size: int
    ) -> tuple[UInt8[np.ndarray, "B H W 3"], Int[np.ndarray, "B 2"], Int[np.ndarray, "B 2"]]:
        """Arrays of `size` images; a batch that is not full repeats its last."""
        items = items + items[-1:] * (size - len(items))
        images = np.stack([pad(item.resized, bucket) for item in items])
        image_hw, output_hw = (
            np.asarray([getattr(item, name).shape[:2] for item in items], np.int32) for name in ("resized", "image")
        )
        return images, image_hw, output_hw

    def _view(self, items: list["_Prepared"], bucket: tuple[int, int], short_side: int) -> View:
        """A batch's images at another size, in arrays that follow from the bucket."""
        share = short_side / self.short_side
        # A side that was rounded to the bucket's may be rounded up once more here.
        sides = [math.ceil((side + 1) * share) + 1 for side in bucket]
        shape = tuple(round_up(side, STRIDE) for side in sides)
        max_side = int(self.max_side * share)
        small = [
            item._replace(resized=resize(item.image, resized_shape(*item.image.shape[:2], short_side, max_side)))
            for item in items
        ]
        return View(*self._batch(small, shape, size=self._rows)[:2])

    def _dispatch(
        self,
        place: int,
        bucket: tuple[int, int],
        canvas: tuple[int, int],
        items: list["_Prepared"],
        *,
        words: "_Words",
        tasks: tuple[str, ...],
        overlap_threshold: float,
        before_resize: bool,
        offered: Callable[[int], Sequence[int]] | None,
    ) -> Postprocessed:
        arrays = self._batch(items, bucket, size=self._rows)
        text, is_thing = words.arrays[place]
        choice = None
        if offered is not None:
            choice = np.zeros((self._rows, *is_thing.shape), bool)
            for row in range(self._rows):
                choice[row, list(offered(items[min(row, len(items) - 1)].index))] = True
        return self._program(
            self._states[place],
            *arrays,
            text,
            is_thing,
            np.float32(overlap_threshold),
            choice,
            canvas=canvas,
            tasks=tasks,
            before_resize=before_resize,
        )


class _Words(NamedTuple):
    """A vocabulary, and what the program reads of it."""

    vocabulary: Vocabulary
    arrays: list[tuple[TextClassifier, Bool[Array, " K"]]]
    """The words and which of them are things, in each place."""


class _Prepared(NamedTuple):
    """An image on its way in: as it was and as the network will read it, or what is wrong with it."""

    index: int
    image: UInt8[np.ndarray, "H W 3"] | None = None
    resized: UInt8[np.ndarray, "h w 3"] | None = None
    bucket: tuple[int, int] | None = None
    error: ValueError | OSError | None = None


def _segment(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    images: UInt8[Array, "B H W 3"],
    image_hw: Int[Array, "B 2"],
    output_hw: Int[Array, "B 2"],
    text: TextClassifier,
    is_thing: Array,
    overlap_threshold: Float[Array, ""],
    offered: Bool[Array, "B K"] | None,
    *,
    canvas: tuple[int, int],
    tasks: tuple[str, ...],
    before_resize: bool,
) -> Postprocessed:
    """The whole of one batch, from pixels to maps: one program."""
    model = nnx.merge(graphdef, state)
    pixels, valid_hw = normalize_images(images, image_hw)
    prediction, features = model(pixels, valid_hw, text)
    return postprocess(
        prediction.mask_logits,
        model.classify(prediction, features.clip_dense, valid_hw, text, offered),
        is_thing,
        text.num_classes,
        image_hw,
        output_hw,
        canvas=canvas,
        tasks=tasks,
        overlap_threshold=overlap_threshold,
        semantic_before_resize=before_resize,
    )


def _spread(program: Callable[..., Postprocessed], mesh: Mesh, in_specs: Sequence[PartitionSpec]) -> Callable[..., Any]:
    """The same program on every device, each with its part of the batch: nothing passes between them."""

    def spread(*arrays: Any, **options: Any) -> Postprocessed:
        return jax.shard_map(
            functools.partial(program, **options),
            mesh=mesh,
            in_specs=tuple(in_specs),
            out_specs=PartitionSpec("data"),
            check_vma=False,
        )(*arrays)

    return spread


def _score(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    images: UInt8[Array, "B H W 3"],
    image_hw: Int[Array, "B 2"],
    output_hw: Int[Array, "B 2"],
    text: TextClassifier,
    *,
    canvas: tuple[int, int],
    classes: int,
    before_resize: bool,
) -> Float[Array, "B H_out W_out K"]:
    model = nnx.merge(graphdef, state)
    pixels, valid_hw = normalize_images(images, image_hw)
    prediction, features = model(pixels, valid_hw, text)
    class_probs = model.classify(prediction, features.clip_dense, valid_hw, text)
    real = jnp.concatenate([class_probs[..., :classes], class_probs[..., -1:]], axis=-1)
    return semantic_scores(
        prediction.mask_logits, real, image_hw, output_hw, canvas=canvas, before_resize=before_resize
    )
