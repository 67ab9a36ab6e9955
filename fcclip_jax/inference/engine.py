"""The weights on their devices and the compiled programs; `Segmenter`, evaluation and validation use them."""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Float

from fcclip_jax.conventions import INSTANCE_THRESHOLD, OVERLAP_THRESHOLD, TASKS, check_tasks
from fcclip_jax.data.images import ImageLike
from fcclip_jax.inference import buckets, inside, programs
from fcclip_jax.inference.buckets import Shapes
from fcclip_jax.inference.feeding import Failure, Feeder, Photo, Unreadable, stack
from fcclip_jax.inference.inside import Explanation, Trunk
from fcclip_jax.inference.postprocess import InstanceScores, Postprocessed
from fcclip_jax.inference.programs import Words, spread
from fcclip_jax.inference.results import Result, make_result
from fcclip_jax.inference.sweep import SWEEP_SPECS, SecondClip, SecondInputs, Way, sweep
from fcclip_jax.models.building import name_before_unroll, named_variables, split_for_inference, without_text
from fcclip_jax.models.descriptions import OFFICIAL_DEFAULTS
from fcclip_jax.models.fcclip import FCCLIP
from fcclip_jax.models.precision import choose_precision
from fcclip_jax.process_memory import ran_out
from fcclip_jax.text.vocabulary import Vocabulary

NO_VOID_TRUST = OFFICIAL_DEFAULTS.void_trust

Dispatch = Callable[[int, Shapes, list[Photo]], Postprocessed]
"""Starts one program: (index of the placement, shapes, images) → output on the device."""


class Engine:
    """A model whose programs are compiled once for each pair of shapes, on one device or several.

    New words within a bucket of classes, and new weights, never recompile.
    """

    def __init__(
        self,
        model: FCCLIP,
        feeder: Feeder,
        *,
        batch_size: int = 1,
        batched: bool | None = None,
        devices: Sequence[jax.Device] | None = None,
        precision: str | None = None,
    ):
        """Places the weights, in the precision's dtype; programs are compiled when they first run.

        model: the engine ignores its text tower.
        batch_size, batched, devices, precision: `Segmenter`'s.

        Raises:
            ValueError: the batch or the precision does not fit the devices.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        # The device or the devices of each program; None is JAX's default.
        self._places: list[jax.Device | NamedSharding | None] = [None] if devices is None else list(devices)
        devices = jax.local_devices()[:1] if devices is None else list(devices)
        if not devices:
            raise ValueError("devices is empty; give at least one, or None for the first")
        if batched is None:
            batched = devices[0].platform != "cpu"
        if batched and batch_size % len(devices):
            raise ValueError(
                f"a batch of {batch_size} cannot be divided evenly among {len(devices)} devices; choose a multiple of them"
            )
        self.precision = choose_precision(precision, devices[0])
        self.feeder, self.batch_size, self.ensemble = feeder, batch_size, model.ensemble
        self._rows = batch_size if batched else 1  # images in one run of a program
        self._vocabulary: Vocabulary | None = None
        self._words: list[Words] = []  # one for each placement

        image_model = without_text(model)
        self._shapes = {name: variable.shape for name, variable in named_variables(image_model).items()}
        self._platform = devices[0].platform
        graphdef, state = split_for_inference(image_model, self.precision, self._platform)
        self._graphdef = graphdef
        segment: Callable[..., Postprocessed] = functools.partial(programs.segment, graphdef, self.precision)
        sweep_all: Callable[..., Postprocessed] = functools.partial(sweep, graphdef, self.precision)
        if batched and len(devices) > 1:
            mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))
            self._places = [NamedSharding(mesh, PartitionSpec())]
            segment = spread(segment, mesh, programs.SEGMENT_SPECS)
            sweep_all = spread(sweep_all, mesh, SWEEP_SPECS)
        self._states = self._put(state)
        self._segment = jax.jit(segment, static_argnames=("canvas", "tasks", "before_resize", "instance_scores"))
        self._sweep = jax.jit(sweep_all, static_argnames=("second_graphdef", "canvas", "ways"))
        self._score = jax.jit(
            functools.partial(programs.score, graphdef, self.precision),
            static_argnames=("canvas", "classes", "before_resize"),
        )

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The classes to find; None before `set_words`."""
        return self._vocabulary

    @property
    def trunk(self) -> Trunk:
        """The image trunk with the weights as they are now, in the engine's precision."""
        return nnx.merge(self._graphdef, self._states[0]).clip.image

    def set_words(self, vocabulary: Vocabulary, words: Words) -> None:
        """Sets the classes that the next call finds. Does not recompile within a bucket of classes.

        words: the vocabulary as arrays on the host.
        """
        self._vocabulary, self._words = vocabulary, self._put(words)

    def expect(self, sizes: Iterable[tuple[int, int]], limit: int = 6) -> None:
        """Announces the (height, width) of later images. If they need more than `limit` programs, sizes share some.

        Results stay the same up to rounding. For other sizes nothing changes.

        Raises:
            ValueError: a size fits none of the buckets.
        """
        self.feeder.expect(sizes, limit)

    def warm_up(
        self,
        sizes: Iterable[tuple[int, int]],
        *,
        tasks: Collection[str] = TASKS,
        instance_scores: InstanceScores = "mask_probability",
    ) -> None:
        """Compiles what `segment` needs for images of these sizes, for every placement: see `Segmenter.warm_up`."""
        self._required_vocabulary()
        # A size for each program.
        needed = {self.feeder.shapes(size): size for size in map(buckets.check_size, sizes)}
        # As many images as all placements take in one run. A program that has run needs nothing more.
        images = self._rows * len(self._places)
        for height, width in needed.values():
            black = [np.zeros((height, width, 3), np.uint8)] * images
            for _ in self.segment(black, tasks=tasks, instance_scores=instance_scores):
                pass

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Replaces values of the image model, by the names of `models.building.named_variables`. Does not recompile.

        Values are cast to the dtypes in which the engine holds the weights.
        The text tower is not part of the image model, so its weights and the words stay the same.

        Raises:
            ValueError: the image model has no variable of a name, or the value has another shape.
        """
        for name, value in weights.items():
            if name not in self._shapes:
                raise ValueError(f"the image model has no variable {name}")
            if np.shape(value) != self._shapes[name]:
                raise ValueError(f"{name} has shape {self._shapes[name]}, but its new value has {np.shape(value)}")
        filled = []
        for path, variable in nnx.to_flat_state(self._states[0]):
            name, index = name_before_unroll(".".join(map(str, path)))
            if name in weights:
                value = weights[name] if index is None else weights[name][index]
                variable = variable.replace(np.asarray(value, variable.dtype))
            filled.append((path, variable))
        self._states = self._put(nnx.from_flat_state(filled))

    def segment(
        self,
        images: Iterable[ImageLike],
        *,
        tasks: Collection[str] = TASKS,
        overlap_threshold: float = OVERLAP_THRESHOLD,
        void_trust: Mapping[str, float] = NO_VOID_TRUST,
        alpha: float | None = None,
        beta: float | None = None,
        semantic_before_resize: bool = False,
        instance_scores: InstanceScores = "mask_probability",
        instance_threshold: float = INSTANCE_THRESHOLD,
        offered: Callable[[int], Sequence[int]] | None = None,
    ) -> Iterator[tuple[int, Result | Failure]]:
        """Yields (index, result) as images finish, not necessarily in the order of the images.

        For an image that cannot be read, or that needs too much memory, it yields the error, and continues with the others.
        The classes are those that are set when the first result is requested.

        void_trust: by task; see `models.classifiers.ensemble`.
        alpha, beta: by default the model's ensemble's.
        semantic_before_resize: forms class scores at the network's size and then resizes them, as the official
            semantic-only configs do.
        instance_scores, instance_threshold: see `DefaultsDescription`.
        offered: (index) → the classes that the image may have, counted from 0; None offers all.
        """
        vocabulary, words, tasks = self._required_vocabulary(), self._words, check_tasks(tasks)
        if not 0 <= overlap_threshold <= 1:
            raise ValueError(f"overlap_threshold is {overlap_threshold}; it is a share, from 0 to 1")
        alpha = self.ensemble.alpha if alpha is None else alpha
        beta = self.ensemble.beta if beta is None else beta
        if not (0 <= alpha <= 1 and 0 <= beta <= 1):
            raise ValueError(f"alpha is {alpha} and beta is {beta}; they are weights, from 0 to 1")

        def dispatch(place: int, shapes: Shapes, photos: list[Photo]) -> Postprocessed:
            choice = None
            if offered is not None:
                choice = np.zeros((self._rows, *words[place].is_thing.shape), bool)
                for row in range(self._rows):
                    choice[row, list(offered(photos[min(row, len(photos) - 1)].position))] = True
            return self._segment(
                self._states[place],
                stack(photos, shapes.bucket, size=self._rows),
                words[place],
                np.float32(overlap_threshold),
                np.asarray([void_trust[task] for task in tasks], np.float32),
                np.asarray([alpha, beta], np.float32),
                choice,
                canvas=shapes.canvas,
                tasks=tasks,
                before_resize=semantic_before_resize,
                instance_scores=instance_scores,
            )

        def finish(photo: Photo, output: Postprocessed) -> Result:
            return make_result(photo.image, vocabulary, output, instance_threshold=instance_threshold)

        yield from self._results(images, dispatch, finish)

    def sweep(
        self,
        images: Iterable[ImageLike],
        ways: Sequence[Way],
        *,
        second_clip: SecondClip | None = None,
        overlap_threshold: float = OVERLAP_THRESHOLD,
    ) -> Iterator[tuple[int, list[Result] | Failure]]:
        """Works as `segment`, but yields a panoptic result for each way to classify the masks, which are computed once.

        second_clip: another CLIP, for the ways that use it.
        """
        vocabulary, words = self._required_vocabulary(), self._words
        second_graphdef, inputs = None, None
        if second_clip is not None:
            second_graphdef, state = split_for_inference(second_clip.trunk, self.precision, self._platform)
            inputs = SecondInputs(state, second_clip.text, second_clip.logit_scale)
        seconds = self._put(inputs)
        sides = sorted({way.short_side for way in ways if way.short_side is not None})

        def dispatch(place: int, shapes: Shapes, photos: list[Photo]) -> Postprocessed:
            return self._sweep(
                self._states[place],
                seconds[place],
                stack(photos, shapes.bucket, size=self._rows),
                {side: self.feeder.view(photos, shapes.bucket, side, size=self._rows) for side in sides},
                words[place],
                np.float32(overlap_threshold),
                second_graphdef=second_graphdef,
                canvas=shapes.canvas,
                ways=tuple(ways),
            )

        def finish(photo: Photo, output: Postprocessed) -> list[Result]:
            parts = (jax.tree.map(lambda x, i=i: x[i], output) for i in range(len(ways)))
            return [make_result(photo.image, vocabulary, part) for part in parts]

        yield from self._results(images, dispatch, finish)

    def semantic_scores(
        self, image: ImageLike, *, before_resize: bool = False, void_trust: float = 0.0
    ) -> Float[np.ndarray, "K H W"]:
        """Returns every class's score at every pixel of one image: see `Segmenter.semantic_scores`."""
        vocabulary, photo = self._required_vocabulary(), self._read(image)
        height, width = photo.image.shape[:2]
        scores = self._score(
            self._states[0],
            stack([photo], photo.bucket, size=1),
            self._words[0].text,
            np.float32(void_trust),
            canvas=buckets.canvas((height, width)),
            classes=len(vocabulary.classes),
            before_resize=before_resize,
        )
        return np.moveaxis(np.array(np.asarray(scores)[0, :height, :width]), -1, 0)

    def explain(self, image: ImageLike, *, void_trust: float = 0.0) -> Explanation:
        """Returns each query's mask and class probabilities: see `Segmenter.explain`."""
        self._required_vocabulary()
        photo = self._read(image)
        inputs, text = stack([photo], photo.bucket, size=1), self._words[0].text
        return inside.explain(self._graphdef, self.precision, self._states[0], inputs, text, void_trust)

    def _results(
        self, images: Iterable[ImageLike], dispatch: Dispatch, finish: Callable[[Photo, Postprocessed], Any]
    ) -> Iterator[tuple[int, Any]]:
        """Yields finished images. The devices compute a batch while the host fetches and finishes the one before."""

        def start(place: int, shapes: Shapes, photos: list[Photo]) -> Postprocessed | MemoryError:
            return _unless_memory_runs_out(lambda: dispatch(place, shapes, photos))

        def finished(parts: list[tuple[list[Photo], Postprocessed | MemoryError]]) -> Iterator[tuple[int, Any]]:
            for photos, output in parts:
                if not isinstance(output, MemoryError):
                    output = _unless_memory_runs_out(functools.partial(jax.device_get, output))
                for row, photo in enumerate(photos):
                    if isinstance(output, MemoryError):
                        yield photo.position, output
                    else:
                        yield photo.position, finish(photo, jax.tree.map(lambda x, row=row: x[row], output))

        underway: list[tuple[list[Photo], Postprocessed | MemoryError]] = []
        size = self._rows * len(self._places)
        for batch in self.feeder.batches(images, size, ahead=self.batch_size + 1):
            if isinstance(batch, Unreadable):
                yield batch.position, batch.error
                continue
            shapes, photos = batch
            parts = [photos[first : first + self._rows] for first in range(0, len(photos), self._rows)]
            before, underway = underway, [(part, start(place, shapes, part)) for place, part in enumerate(parts)]
            for _, output in underway:
                if not isinstance(output, MemoryError):
                    jax.tree.map(lambda x: x.copy_to_host_async(), output)  # once computed, beside the next batch
            yield from finished(before)
        yield from finished(underway)

    def _put(self, tree: Any) -> list[Any]:
        """Returns a copy for each placement. For None, arrays stay uncommitted: committed ones would recompile programs."""
        return [jax.device_put(tree, place) for place in self._places]

    def _read(self, image: ImageLike) -> Photo:
        photo = self.feeder.decode(0, image)
        if isinstance(photo, Unreadable):
            raise photo.error
        return photo

    def _required_vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            raise ValueError("the classes to find are not set; call Segmenter.set_classes first")
        return self._vocabulary


def _unless_memory_runs_out(compute: Callable[[], Postprocessed]) -> Postprocessed | MemoryError:
    """Returns what `compute` returns, or the error if there is too little memory for these images: others may fit."""
    try:
        return compute()
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        return MemoryError("not enough memory")
