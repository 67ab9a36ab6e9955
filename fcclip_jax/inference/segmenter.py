"""The Python API: load a model, choose the classes, segment images."""

import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Float

from fcclip_jax import caching, checkpoint, weights
from fcclip_jax.conventions import RANDOM_WEIGHTS, TASKS
from fcclip_jax.data.images import ImageLike
from fcclip_jax.inference.engine import Engine
from fcclip_jax.inference.feeding import Failure, Feeder
from fcclip_jax.inference.inside import Explanation, dense_features
from fcclip_jax.inference.programs import Words
from fcclip_jax.inference.results import Result
from fcclip_jax.models.descriptions import OFFICIAL_DEFAULTS, SMALL, DefaultsDescription
from fcclip_jax.models.fcclip import FCCLIP
from fcclip_jax.models.precision import choose_precision
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.text.class_lists import warn_of_lists
from fcclip_jax.text.embeddings import TextEncoder
from fcclip_jax.text.known_words import check_known
from fcclip_jax.text.vocabulary import Vocabulary


class Segmenter:
    """Segments photographs in any words.

        segmenter = Segmenter.load("checkpoint_dir")
        segmenter.set_classes(["astronaut", "space shuttle|rocket", "flag"])
        result = segmenter("photo.jpg")
        result.panoptic.segments; result.semantic; result.instances
        result.draw().save("out.png")

    A program is compiled once for each bucket of image sizes, with each bucket of output sizes and each set of tasks. New words
    and new sizes inside these buckets never recompile.
    """

    def __init__(
        self,
        model: FCCLIP,
        training_vocabulary: Vocabulary,
        *,
        fingerprint: str,
        weights_id: str = "",
        known_words: Sequence[str] | None = None,
        defaults: DefaultsDescription = OFFICIAL_DEFAULTS,
        short_side: int | None = None,
        max_side: int | None = None,
        buckets: Sequence[tuple[int, int]] | None = None,
        batch_size: int = 1,
        batched: bool | None = None,
        devices: Sequence[jax.Device] | None = None,
        precision: str | None = None,
        output_size: str | int = "image",
        cache_dir: pathlib.Path | None = None,
    ):
        """Wraps a model; `load` and `random` make one.

        training_vocabulary: the classes that the model was trained on; they count as seen.
        fingerprint: identifies the text tower's weights, for the text embeddings that are cached in `cache_dir`;
            None caches those of the latest names, in memory.
        weights_id: identifies all weights, for `settings`.
        known_words: the only words that the model knows; None if it takes any.
        defaults: what the model segments with where an argument is None.
        short_side, max_side: pixels; images are resized to this shorter side, or smaller, so that the longer side is at most
            `max_side`. By default those of `defaults`.
        buckets: (height, width) of the arrays that images are padded into; by default a few that follow the sides.
        batch_size: images in a batch; more than one is faster on accelerators.
        batched: True computes a batch in one program, in equal parts on the devices. False computes image by image, with a
            program compiled for each device: results then have the same bits in any batch and on any number of devices.
            By default True except on a CPU, where batches save no time.
        devices: the devices that share a batch; by default the first one.
        precision: "float32" computes everything in float32, as the official code does. "tf32" rounds the factors of float32
            products to 11 bits, which NVIDIA's GPUs multiply much faster. "bfloat16" holds activations and weights in
            bfloat16, in half the memory, and multiplies them with 8 bits; sums, statistics of norms, softmax, positions,
            similarities and post-processing stay in float32. By default "float32" on a CPU, "tf32" on a GPU that has it,
            "bfloat16" on a TPU. The text tower computes in float32 in any case.
        output_size: the size of the results, their `image` included: "image" is each image's own, "network" the size that the
            network reads, a number the longer side in pixels (at most the image's own). What a photograph costs beside the
            network grows with its results' pixels.

        Raises:
            ValueError: a size, the batch, the buckets or the precision do not fit.
        """
        self.training_vocabulary = training_vocabulary
        self._weights_id = weights_id
        self.known_words = None if known_words is None else tuple(known_words)
        self.engine = Engine(
            model,
            Feeder(
                defaults.short_side if short_side is None else short_side,
                defaults.max_side if max_side is None else max_side,
                buckets,
                output_size,
            ),
            batch_size=batch_size,
            batched=batched,
            devices=devices,
            precision=precision,
        )
        self.defaults = defaults
        # Only the text encoder holds the text tower.
        self._encoder = TextEncoder(model.clip.text, fingerprint=fingerprint, cache_dir=cache_dir)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        short_side: int | None = None,
        max_side: int | None = None,
        buckets: Sequence[tuple[int, int]] | None = None,
        batch_size: int = 1,
        batched: bool | None = None,
        devices: Sequence[jax.Device] | None = None,
        precision: str | None = None,
        output_size: str | int = "image",
        keep_words: bool = True,
    ) -> "Segmenter":
        """Loads a checkpoint directory, local or anywhere that etils.epath reads, such as gs://; or published weights by name.

        path: a path, or a name that `fcclip weights` lists, unless the working folder has a path of that name. Weights that are
            not here are downloaded and converted first. "world" is the small trained model inside this package.
            "hf://OWNER/NAME" or "hf://OWNER/NAME@REVISION" is a checkpoint on the Hugging Face hub. "random" is what `random`
            makes.
        keep_words: False writes no embeddings of words to the cache folder: a server keeps nothing of what its visitors ask.

        The other options are the constructor's; the checkpoint has the defaults of its own.

        Raises:
            FileNotFoundError: the path holds no checkpoint.
            ValueError: the checkpoint is damaged or holds only a CLIP, or an option does not fit.
            OSError: the weights cannot be downloaded.
        """
        if path == RANDOM_WEIGHTS:
            return cls.random(
                short_side=short_side,
                max_side=max_side,
                buckets=buckets,
                batch_size=batch_size,
                batched=batched,
                devices=devices,
                precision=precision,
                output_size=output_size,
            )
        caching.keep_compiled_programs()
        choose_precision(precision, (devices or jax.local_devices())[0])  # before a long read
        loaded = checkpoint.load(weights.find(path, whole=True))
        return cls(
            loaded.model,
            loaded.training_vocabulary,
            fingerprint=loaded.text_sha256,
            weights_id=loaded.sha256,
            known_words=loaded.known_words,
            defaults=loaded.description.defaults,
            short_side=short_side,
            max_side=max_side,
            buckets=buckets,
            batch_size=batch_size,
            batched=batched,
            devices=devices,
            precision=precision,
            output_size=output_size,
            cache_dir=caching.cache_dir() / "text" if keep_words else None,
        )

    @classmethod
    def random(
        cls,
        seed: int = 0,
        *,
        short_side: int | None = None,
        max_side: int | None = None,
        buckets: Sequence[tuple[int, int]] | None = None,
        batch_size: int = 1,
        batched: bool | None = None,
        devices: Sequence[jax.Device] | None = None,
        precision: str | None = None,
        output_size: str | int = "image",
    ) -> "Segmenter":
        """Makes a small model with reproducible random weights, for trying the API: its results have no meaning.

        The options are the constructor's.
        """
        caching.keep_compiled_programs()
        return cls(
            random_model(SMALL, seed),
            Vocabulary.load("coco_panoptic"),
            fingerprint=f"random {seed}",
            weights_id=f"random {seed}",
            short_side=short_side,
            max_side=max_side,
            buckets=buckets,
            batch_size=batch_size,
            batched=batched,
            devices=devices,
            precision=precision,
            output_size=output_size,
        )

    def set_classes(
        self, classes: str | Sequence[str] | Vocabulary | None = None, *, stuff: Sequence[str] = ()
    ) -> None:
        """Sets the classes to find: a list of words, a shipped vocabulary's name, or a Vocabulary; by default the training's.

        Separate synonyms with | or a comma: "cat|kitten". Words are things unless `stuff` names them. A class that is
        probably a list of classes, such as "cat dog person", is warned of.

        Raises:
            ValueError: the list is empty, or the model was trained on no words; the words do not fit (see
                `Vocabulary.from_words`), or a synonym is not among `known_words`.
        """
        if classes is None:
            classes = self.training_vocabulary
            if not classes.classes:
                raise ValueError("this model was trained on no words; name the classes")
        if isinstance(classes, (str, Vocabulary)):
            if stuff:
                raise ValueError("stuff needs a list of words; a vocabulary defines which of its classes are stuff")
            vocabulary = Vocabulary.load(classes) if isinstance(classes, str) else classes
        else:
            vocabulary = Vocabulary.from_words(classes, stuff)
            warn_of_lists(vocabulary)
        if not vocabulary.classes:
            raise ValueError(f"the vocabulary {vocabulary.name!r} has no classes")
        check_known(vocabulary, self.known_words, listed="segmenter.known_words")
        text = self._encoder.classifier(vocabulary, self.training_vocabulary)
        is_thing = np.zeros(text.seen.shape, bool)
        is_thing[: len(vocabulary.classes)] = vocabulary.thing_mask
        self.engine.set_words(vocabulary, Words(text, is_thing))

    def warm_up(self, sizes: Iterable[tuple[int, int]], *, tasks: Collection[str] = TASKS) -> None:
        """Compiles ahead what images of these sizes need, so that the first of them takes no longer than the others.

        Sizes that share a program compile it once. Other classes use the same programs, unless their number of names is
        in another bucket. `semantic_scores` has programs of its own.

        sizes: (height, width) of the images, in pixels.
        tasks: those of the later calls; each set of tasks has its own programs.

        Raises:
            ValueError: the classes are not set, a size is not two positive integers or fits none of the buckets, or a task
                does not exist.
        """
        self.engine.warm_up(sizes, tasks=tasks, instance_scores=self.defaults.instance_scores)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The classes to find; None before `set_classes`."""
        return self.engine.vocabulary

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """The (height, width) of the arrays that images are padded into."""
        return self.engine.feeder.buckets

    @property
    def settings(self) -> dict[str, Any]:
        """What its results depend on beside the classes and the arguments of a call, in values that JSON can represent."""
        feeder = self.engine.feeder
        return {
            "weights": self._weights_id[:16],
            "short_side": feeder.short_side,
            "max_side": feeder.max_side,
            "buckets": [list(bucket) for bucket in feeder.buckets],
            "output_size": feeder.output_size,
            "precision": self.engine.precision.name,
        }

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        tasks: Collection[str] = TASKS,
        overlap_threshold: float | None = None,
        void_trust: float | Mapping[str, float] | None = None,
        alpha: float | None = None,
        beta: float | None = None,
    ) -> Result | list[Result]:
        """Segments one image into a result, or a list or tuple of images into a list.

        images: paths, http(s) addresses, encoded bytes, open files, PIL images or RGB arrays (uint8, [H, W, 3]).
        tasks: any of panoptic, semantic, instances; fewer are faster.
        overlap_threshold: the minimum share of its own mask that a panoptic segment keeps; by default the checkpoint's.
        void_trust: from 0 to 1, by default the checkpoint's (0 for FC-CLIP): how far the certainty of CLIP reduces a mask's
            probability of void, as OVRCOAT does. More than 0 finds more objects of unseen words, and more false ones.
            A number is for panoptic results alone, {"semantic": 0.5, "instances": 0.5} for others.
        alpha, beta: from 0 to 1, by default the checkpoint's: the weight of CLIP's own scores, beside those of the trained
            classifier, for classes that were seen in training, and for all others.

        Raises:
            OSError: an image cannot be read.
            ValueError: an image is damaged, or an argument does not fit.
            MemoryError: an image needs too much memory.
        """
        single = not isinstance(images, (list, tuple))
        many = cast("Sequence[ImageLike]", [images] if single else images)
        results: dict[int, Result] = {}
        stream = self.stream(
            many, tasks=tasks, overlap_threshold=overlap_threshold, void_trust=void_trust, alpha=alpha, beta=beta
        )
        for index, result in stream:
            if isinstance(result, Exception):
                raise result
            results[index] = result
        return results[0] if single else [results[index] for index in range(len(results))]

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        tasks: Collection[str] = TASKS,
        overlap_threshold: float | None = None,
        void_trust: float | Mapping[str, float] | None = None,
        alpha: float | None = None,
        beta: float | None = None,
    ) -> Iterator[tuple[int, Result | Failure]]:
        """Yields (index, result) as images finish, not necessarily in the order of the images.

        For an image that cannot be read, or that needs too much memory, it yields the error, and continues with the others.
        The classes are those that are set when the first result is requested.
        """
        defaults = self.defaults
        return self.engine.segment(
            images,
            tasks=tasks,
            overlap_threshold=defaults.overlap_threshold if overlap_threshold is None else overlap_threshold,
            void_trust=defaults.choose_void_trust(void_trust),
            alpha=alpha,
            beta=beta,
            instance_scores=defaults.instance_scores,
            instance_threshold=defaults.instance_threshold,
        )

    def semantic_scores(self, image: ImageLike, *, before_resize: bool = False) -> Float[np.ndarray, "K H W"]:
        """Returns every class's score at every pixel of one image: a large array, compiled for each number of classes.

        before_resize: forms class scores at the network's size and then resizes them, as the official semantic-only
            configs do.
        """
        void_trust = self.defaults.semantic_void_trust
        return self.engine.semantic_scores(image, before_resize=before_resize, void_trust=void_trust)

    def features(self, image: ImageLike, short_side: int) -> Float[np.ndarray, "h w C"]:
        """Returns the frozen trunk's dense features of one image: the input of CLIP's own head, before any pooling.

        They have stride 32: a row and a column for each 32 pixels of the resized image, the last of which may be part of it.
        Whatever the words, they stay the same. The out-of-vocabulary classifier averages them under each mask.

        short_side: pixels, at least 32; the image is resized to this shorter side, however long the other becomes.

        Raises:
            OSError: the image cannot be read.
            ValueError: the image is damaged, or `short_side` is too small.
        """
        return dense_features(self.engine.trunk, image, short_side, self.engine.precision)

    def explain(self, image: ImageLike, *, void_trust: float | None = None) -> Explanation:
        """Returns what the panoptic result of one image is made of: each query's mask, and what both classifiers say of it.

        void_trust: for panoptic results, as when segmenting; by default the checkpoint's.

        Raises:
            OSError: the image cannot be read.
            ValueError: the classes are not set, the image is damaged, or `void_trust` is not from 0 to 1.
        """
        return self.engine.explain(image, void_trust=self.defaults.choose_void_trust(void_trust)["panoptic"])
