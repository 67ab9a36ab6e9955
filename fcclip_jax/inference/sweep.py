"""One program that classifies the same masks in many ways: the comparisons of the paper's tables 6, 8 and 9."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fcclip_jax.conventions import MASK_STRIDE
from fcclip_jax.inference.postprocess import Postprocessed, panoptic_sweep
from fcclip_jax.inference.programs import BY_IMAGE, WHOLE, Inputs, View, Words
from fcclip_jax.inference.resampling import logits_in_view
from fcclip_jax.models.classifiers import ensemble, shrink, text_logits
from fcclip_jax.models.descriptions import EnsembleDescription
from fcclip_jax.models.fcclip import dense_masks, normalize_images
from fcclip_jax.models.precision import Precision
from fcclip_jax.structs import AnyArray, TextClassifier, checked


class Way(NamedTuple):
    """A way to classify masks."""

    mixing: EnsembleDescription
    short_side: int | None = None
    """Size in pixels of the image that the out-of-vocabulary classifier reads; None is the image that the masks come from."""
    second_clip: bool = False
    """True if the out-of-vocabulary classifier is another CLIP."""
    void_trust: float = 0.0
    """See `models.classifiers.ensemble`."""


class SecondClip(NamedTuple):
    """Another CLIP, which classifies masks of the first one's model."""

    trunk: nnx.Module
    text: TextClassifier
    """The same vocabulary, embedded by its own text tower."""
    logit_scale: Float[AnyArray, ""]


class SecondInputs(NamedTuple):
    """A `SecondClip` as the program reads it."""

    state: nnx.State
    text: TextClassifier
    logit_scale: Float[AnyArray, ""]


def sweep(
    graphdef: nnx.GraphDef,
    precision: Precision,
    state: nnx.State,
    second: SecondInputs | None,
    inputs: Inputs,
    views: dict[int, View],
    words: Words,
    overlap_threshold: Float[Array, ""],
    *,
    second_graphdef: nnx.GraphDef | None,
    canvas: tuple[int, int],
    ways: tuple[Way, ...],
) -> Postprocessed:
    """Returns panoptic results [B, ways, ...] of one batch. Each trunk reads each view at most once.

    second, second_graphdef: another CLIP, and the code of its trunk; None if no way uses it.
    views: by their short side in pixels.
    """
    for struct in (inputs, words, *views.values()):
        checked(struct)
    model = nnx.merge(graphdef, state)
    with jax.default_matmul_precision(precision.products):
        pixels, valid_hw = normalize_images(inputs.images, inputs.image_hw, precision.dtype)
        prediction, features = model(pixels, valid_hw, words.text)

        @functools.cache
        def clip_logits(short_side: int | None, second_clip: bool) -> tuple[Float[Array, "B Q K"], Bool[Array, "B Q"]]:
            """Returns the scores of CLIP, and whether a mask has any cell of its features."""
            trunk, text, scale = model.clip.image, words.text, model.clip.logit_scale[...]
            if second_clip:
                assert second is not None and second_graphdef is not None
                trunk, text, scale = nnx.merge(second_graphdef, second.state), second.text, second.logit_scale
            if short_side is None:
                dense = trunk(pixels, valid_hw).clip_dense if second_clip else features.clip_dense
                hw, logits = valid_hw, shrink(prediction.mask_logits, trunk.stride // MASK_STRIDE)
            else:
                view = views[short_side]
                view_pixels, hw = normalize_images(view.images, view.image_hw, precision.dtype)
                dense = trunk(view_pixels, hw).clip_dense
                logits = jax.vmap(functools.partial(logits_in_view, grid=dense.shape[1:3], stride=trunk.stride))(
                    prediction.mask_logits, inputs.image_hw, view.image_hw
                )
            masks = dense_masks(logits, hw, trunk.stride)
            return text_logits(trunk.embed_masks(dense, hw, masks), text, scale), jnp.any(masks, axis=(1, 2))

        probs = []
        for way in ways:
            logits, valid_masks = clip_logits(way.short_side, way.second_clip)
            probs.append(
                ensemble(prediction.class_logits, logits, words.text.seen, valid_masks, way.mixing, way.void_trust)
            )
    panoptic, segments = panoptic_sweep(
        prediction.mask_logits,
        jnp.stack(probs),
        words.is_thing,
        inputs.image_hw,
        inputs.output_hw,
        canvas=canvas,
        overlap_threshold=overlap_threshold,
    )
    return checked(Postprocessed(panoptic, segments, None, None, None))


SWEEP_SPECS = (WHOLE, WHOLE, BY_IMAGE, BY_IMAGE, WHOLE, WHOLE)
"""Placement of `sweep`'s arrays: state, second, inputs, views, words, overlap_threshold."""
