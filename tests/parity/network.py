"""A pair's model, its weights through the conversion tables, and the programs that it runs in."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from convert import fcclip as table
from convert.rules import ConversionError, to_ours
from fcclip_jax.conventions import STRIDE, TASKS
from fcclip_jax.data.images import pad
from fcclip_jax.inference import buckets, resampling
from fcclip_jax.inference.postprocess import InstanceScores, Postprocessed, postprocess, semantic_scores
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import EnsembleDescription, ModelDescription
from fcclip_jax.models.fcclip import FCCLIP, normalize_images
from fcclip_jax.models.precision import FLOAT32, Precision, cast_state
from fcclip_jax.structs import Prediction, TextClassifier
from fcclip_jax.text.embeddings import TextEncoder
from tests.parity.detinit import weight
from tests.parity.pairs import BadFiles, Pair, describe, read_manifest, vocabulary
from tests.parity.stages import Arrays, head_stages, stages

Size = tuple[int, int]
BATCH = 3
"""The minimum number of images computed together; a batch that is not full repeats its last image."""


class Heads(NamedTuple):
    """The network's outputs for one image, inside its own multiple of 32: NumPy arrays in this project's layout."""

    mask_logits: np.ndarray  # [h, w, Q]
    class_logits: np.ndarray  # [Q, K1], real classes only
    clip_dense: np.ndarray  # [h5, w5, C]


class Outcome(NamedTuple):
    """The results of one image at its output's size, with classes and sizes cropped to the real ones."""

    mask_logits: np.ndarray  # [h, w, Q], at stride 4
    class_probs: np.ndarray  # [Q, K1]
    class_logits: np.ndarray | None  # [Q, K1], in-vocabulary; None after post-processing alone
    full_logits: np.ndarray  # [H, W, Q], resized to the output
    semantic_scores: np.ndarray  # [H, W, K]
    output: Postprocessed


class Network:
    """The model of a pair, ready to run on photographs or on crafted head outputs."""

    def __init__(self, pair: Pair, precision: Precision = FLOAT32):
        self.description = describe(pair)
        self.model = build(self.description, read_manifest(pair), pair)
        self.encoder = TextEncoder(self.model.clip.text, fingerprint="", cache_dir=None)
        self.read_classes(pair)
        test_options = pair.require("model_cfg", "MASK_FORMER", "TEST")
        self.overlap_threshold = test_options["OVERLAP_THRESHOLD"]
        self.void_trust = float(pair.facts.get("clip_trust_weight", 0.0))
        self.object_mask_threshold = test_options["OBJECT_MASK_THRESHOLD"]
        resized_first = ("SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE", "PANOPTIC_ON", "INSTANCE_ON")
        self.semantic_before_resize = not any(test_options[name] for name in resized_first)
        graphdef, state = nnx.split(self.model)
        self.state = cast_state(state, precision.dtype)
        self._stages = jax.jit(functools.partial(_stages, graphdef, dtype=precision.dtype, void_trust=self.void_trust))
        whole = functools.partial(_whole, graphdef, dtype=precision.dtype, void_trust=self.void_trust)
        self._whole = jax.jit(whole, static_argnames=("canvas", "before_resize"))
        self._heads = jax.jit(functools.partial(_head_stages, graphdef), static_argnames=("mixing", "void_trust"))

    def read_classes(self, pair: Pair) -> None:
        """Reads the vocabulary of a json."""
        self.test, self.train = vocabulary(pair, "test_classes"), vocabulary(pair, "train_classes")
        self.text = self.encoder.classifier(self.test, self.train)

    @property
    def is_thing(self) -> np.ndarray:
        """Returns which classes are things, padded as the classifier is."""
        mask = np.zeros(self.text.seen.shape, bool)
        mask[: len(self.test.classes)] = self.test.thing_mask
        return mask

    def stages(self, image: np.ndarray, masks: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns every intermediate array of one image at its own size; `masks` [h, w, Q] decide hard thresholds."""
        padded = padded_size(image.shape[:2])
        own = np.zeros((padded[0] // 4, padded[1] // 4, self.description.head.num_queries), np.float32)
        count = self.description.head.decoder_layers + 1
        out = self._stages(
            self.state,
            pad(image, padded)[None],
            np.int32([image.shape[:2]]),
            self.text,
            tuple(masks.get(i, own)[None] for i in range(count)),
            np.array([i in masks for i in range(count)]),
        )
        out = jax.device_get(jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == jnp.bfloat16 else x, out))
        logits = [name for name in out if name.endswith("logits") or name == "class_probs"]
        return out | {name: self.real_classes(out[name]) for name in logits}

    def segment(
        self,
        photos: Sequence[tuple[np.ndarray, Size]],
        *,
        bucket: Size,
        overlap_threshold: float | None = None,
        before_resize: bool | None = None,
    ) -> list[Outcome]:
        """Segments photographs to their output sizes, in one batch and one program, as users run it."""
        size = max(len(photos), BATCH)
        rows = [*photos, *(photos[-1:] * (size - len(photos)))]
        # The padding holds noise, which must not affect any result.
        images = np.random.default_rng(0).integers(0, 256, (size, *bucket, 3), dtype=np.uint8)
        for row, (image, _) in zip(images, rows, strict=True):
            row[: image.shape[0], : image.shape[1]] = image
        image_hw = np.int32([image.shape[:2] for image, _ in rows])
        output_hw = np.int32([shape for _, shape in rows])
        options = self._options(overlap_threshold, before_resize, output_hw)
        found = self._whole(self.state, images, image_hw, output_hw, self.text, self.is_thing, **options)
        prediction, class_probs, output = jax.device_get(found)
        outcomes = self._outcomes(
            len(photos), prediction.mask_logits, class_probs, output, image_hw, output_hw, options
        )
        logits = self.real_classes(prediction.class_logits)
        return [outcome._replace(class_logits=row) for outcome, row in zip(outcomes, logits, strict=False)]

    def classify(
        self,
        heads: Sequence[Heads],
        image_hw: Sequence[Size],
        *,
        bucket: Size,
        valid_masks_only: bool,
        void_trust: float = 0.0,
    ) -> list[dict[str, np.ndarray]]:
        """Classifies crafted head outputs with CLIP, under the names after `out_vocab_`, and `class_probs`."""
        size = max(len(heads), BATCH)
        rows = [*heads, *(heads[-1:] * (size - len(heads)))]
        hw = np.int32([*image_hw, *(image_hw[-1:] * (size - len(heads)))])
        mixing = self.description.ensemble
        out = self._heads(
            self.state,
            np.stack([in_bucket(row.mask_logits, bucket, 4) for row in rows]),
            np.stack([self.padded_classes(row.class_logits) for row in rows]),
            np.stack([in_bucket(row.clip_dense, bucket, STRIDE) for row in rows]),
            (hw + STRIDE - 1) // STRIDE * STRIDE,
            self.text,
            mixing=EnsembleDescription(alpha=mixing.alpha, beta=mixing.beta, valid_masks_only=valid_masks_only),
            void_trust=void_trust,
        )
        out = jax.device_get(out)
        del out["mask_for_pooling"]  # of the whole bucket
        for name in ("logits", "class_probs"):
            out[name] = self.real_classes(out[name])
        return [{name: value[i] for name, value in out.items()} for i in range(len(heads))]

    def finish(
        self,
        heads: Sequence[tuple[np.ndarray, np.ndarray]],
        image_hw: Sequence[Size],
        output_hw: Sequence[Size],
        *,
        bucket: Size,
        overlap_threshold: float | None = None,
        before_resize: bool | None = None,
        instance_scores: InstanceScores = "mask_probability",
    ) -> list[Outcome]:
        """Post-processes mask logits [h, w, Q] and class probabilities [Q, K1]."""
        size = max(len(heads), BATCH)
        rows = [*heads, *(heads[-1:] * (size - len(heads)))]
        logits = np.stack([in_bucket(mask_logits, bucket, 4) for mask_logits, _ in rows])
        probs = np.stack([self.padded_classes(class_probs, 0.0) for _, class_probs in rows])
        hw = np.int32([*image_hw, *(image_hw[-1:] * (size - len(heads)))])
        out_hw = np.int32([*output_hw, *(output_hw[-1:] * (size - len(heads)))])
        options = self._options(overlap_threshold, before_resize, out_hw)
        inputs = logits, dict.fromkeys(TASKS, probs), self.is_thing, self.text.num_classes, hw, out_hw
        found = jax.device_get(_postprocess(*inputs, **options, instance_scores=instance_scores))
        return self._outcomes(len(heads), logits, probs, found, hw, out_hw, options)

    def real_classes(self, x: np.ndarray) -> np.ndarray:
        """Returns [..., K1] without the padded classes."""
        return np.concatenate([x[..., : len(self.test.classes)], x[..., -1:]], axis=-1)

    def padded_classes(self, x: np.ndarray, value: float = -np.inf) -> np.ndarray:
        """The inverse of `real_classes`, for [Q, K1]."""
        count = self.text.seen.shape[0] + 1 - x.shape[1]
        return np.insert(x, [x.shape[1] - 1] * count, np.float32(value), axis=1)

    def _options(self, overlap_threshold: float | None, before_resize: bool | None, output_hw: np.ndarray) -> dict:
        overlap = self.overlap_threshold if overlap_threshold is None else overlap_threshold
        return {
            "canvas": buckets.canvas((int(output_hw[:, 0].max()), int(output_hw[:, 1].max()))),
            "overlap_threshold": np.float32(overlap),
            "object_mask_threshold": np.float32(self.object_mask_threshold),
            "before_resize": self.semantic_before_resize if before_resize is None else before_resize,
        }

    def _outcomes(
        self,
        count: int,
        mask_logits: np.ndarray,
        class_probs: np.ndarray,
        output: Postprocessed,
        image_hw: np.ndarray,
        output_hw: np.ndarray,
        options: dict,
    ) -> list[Outcome]:
        outcomes = []
        for i in range(count):
            one = slice(i, i + 1)
            height, width = output_hw[i]
            full, scores = _at_output_size(
                mask_logits[one],
                self.real_classes(class_probs[one]),
                image_hw[one],
                output_hw[one],
                canvas=options["canvas"],
                before_resize=options["before_resize"],
            )
            h, w = (side // 4 for side in padded_size(image_hw[i]))
            outcomes.append(
                Outcome(
                    mask_logits[i, :h, :w],
                    self.real_classes(class_probs[i]),
                    None,
                    np.asarray(full)[:height, :width],
                    np.asarray(scores)[0, :height, :width],
                    jax.tree.map(lambda x, i=i: x[i], output),
                )
            )
        return outcomes


def build(description: ModelDescription, manifest: Mapping[str, tuple[int, ...]], pair: Pair) -> FCCLIP:
    """Returns the model with the weights of the manifest's keys, converted by the conversion tables."""
    model = nnx.eval_shape(lambda: FCCLIP(description, rngs=nnx.Rngs(0)))
    variables = named_variables(model)
    given = pair.facts.get("weight_overrides", {})
    if not isinstance(given, dict) or not given.keys() <= manifest.keys():
        raise BadFiles(f"weight_overrides of {pair.path} must name keys of the manifest")
    overrides = {
        key: functools.partial(np.broadcast_to, np.float32(value), manifest[key]) for key, value in given.items()
    }
    try:
        values, _ = to_ours(
            {key: functools.partial(weight, key, shape) for key, shape in manifest.items()} | overrides,
            table.rules(description.clip.image.family),
            table.IGNORED,
            {name: variable.shape for name, variable in variables.items()},
        )
    except ConversionError as error:
        raise BadFiles(f"the manifest of {pair.path} is not that of its model: {error}") from error
    for name, variable in variables.items():
        variable.set_value(values[name])
    return model


def padded_size(image_hw: Sequence[int]) -> Size:
    height, width = (int(-(-side // STRIDE) * STRIDE) for side in image_hw)
    return height, width


def larger_bucket(sizes: Sequence[Sequence[int]]) -> Size:
    """Returns a bucket larger than every image, so that each has padding."""
    height, width = np.max([padded_size(shape) for shape in sizes], axis=0) + STRIDE
    return int(height), int(width)


def in_bucket(x: np.ndarray, bucket: Size, stride: int) -> np.ndarray:
    """Places an [h, w, C] map in the corner of a bucket, with noise elsewhere that must not affect results."""
    padded = np.random.default_rng(0).normal(scale=50, size=(bucket[0] // stride, bucket[1] // stride, x.shape[-1]))
    padded[: x.shape[0], : x.shape[1]] = x
    return padded.astype(np.float32)


def _stages(graphdef, state, images, image_hw, text, masks, forced, *, dtype: str, void_trust: float) -> Arrays:
    return stages(nnx.merge(graphdef, state), images, image_hw, text, masks, forced, dtype, void_trust)


def _head_stages(
    graphdef, state, mask_logits, class_logits, clip_dense, valid_hw, text, *, mixing, void_trust
) -> Arrays:
    model = nnx.merge(graphdef, state)
    prediction = Prediction(mask_logits, class_logits)
    return head_stages(model, prediction, clip_dense, valid_hw, text, mixing, void_trust)


def _whole(
    graphdef,
    state,
    images,
    image_hw,
    output_hw,
    text: TextClassifier,
    is_thing,
    overlap_threshold,
    object_mask_threshold,
    *,
    dtype: str,
    void_trust: float,
    canvas: Size,
    before_resize: bool,
) -> tuple[Prediction, jax.Array, Postprocessed]:
    model = nnx.merge(graphdef, state)
    pixels, valid_hw = normalize_images(images, image_hw, dtype)
    prediction, features = model(pixels, valid_hw, text)
    class_probs = model.classify(prediction, features.clip_dense, valid_hw, text, void_trust=void_trust)
    output = postprocess(
        prediction.mask_logits,
        dict.fromkeys(TASKS, class_probs),
        is_thing,
        text.num_classes,
        image_hw,
        output_hw,
        canvas=canvas,
        overlap_threshold=overlap_threshold,
        object_mask_threshold=object_mask_threshold,
        semantic_before_resize=before_resize,
    )
    return prediction, class_probs, output


@functools.partial(jax.jit, static_argnames=("canvas", "before_resize", "instance_scores"))
def _postprocess(*args, before_resize: bool, **options) -> Postprocessed:
    return postprocess(*args, semantic_before_resize=before_resize, **options)


@functools.partial(jax.jit, static_argnames=("canvas", "before_resize"))
def _at_output_size(mask_logits, class_probs, image_hw, output_hw, *, canvas: Size, before_resize: bool):
    """Returns one image's mask logits [H, W, Q] and class scores [1, H, W, K]."""

    reader = resampling.resized_logits(mask_logits[0], image_hw[0], output_hw[0], canvas)

    def visit(full, window, strip):
        tile = reader.tile(strip, window.column)
        return lax.dynamic_update_slice(full, tile, (window.row, window.column, np.int32(0)))

    empty = jnp.zeros((*resampling.tiled_canvas(canvas), mask_logits.shape[-1]), mask_logits.dtype)
    full = resampling.for_each_tile(visit, empty, output_hw[0], reader)
    scores = semantic_scores(mask_logits, class_probs, image_hw, output_hw, canvas=canvas, before_resize=before_resize)
    return full, scores
