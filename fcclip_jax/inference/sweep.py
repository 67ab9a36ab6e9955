"""One program that classifies the same masks in many ways: the comparisons of the paper's tables 6, 8 and 9."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fcclip_jax.conventions import MASK_STRIDE, STRIDE
from fcclip_jax.inference.postprocess import Postprocessed, panoptic_sweep
from fcclip_jax.inference.programs import BY_IMAGE, WHOLE, Inputs, View, Words
from fcclip_jax.inference.resampling import logits_in_view
from fcclip_jax.models.classifiers import shrink
from fcclip_jax.models.descriptions import EnsembleDescription
from fcclip_jax.models.fcclip import dense_masks, normalize_images
from fcclip_jax.models.precision import Precision
from fcclip_jax.structs import checked


class Way(NamedTuple):
    """A way to classify masks."""

    mixing: EnsembleDescription
    short_side: int | None = None
    """Size in pixels of the image that the out-of-vocabulary classifier reads; None is the image that the masks come from."""
    second_trunk: bool = False
    """True if the out-of-vocabulary classifier is another checkpoint's."""


def sweep(
    graphdef: nnx.GraphDef,
    precision: Precision,
    state: nnx.State,
    second_state: nnx.State | None,
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

    second_state, second_graphdef: another trunk; None if no way uses it.
    views: by their short side in pixels.
    """
    for struct in (inputs, words, *views.values()):
        checked(struct)
    model = nnx.merge(graphdef, state)
    with jax.default_matmul_precision(precision.products):
        pixels, valid_hw = normalize_images(inputs.images, inputs.image_hw, precision.dtype)
        prediction, features = model(pixels, valid_hw, words.text)

        @functools.cache
        def embeddings(short_side: int | None, second_trunk: bool) -> tuple[Float[Array, "B Q C"], Bool[Array, "B Q"]]:
            trunk = model.clip.image
            if second_trunk:
                assert second_graphdef is not None
                trunk = nnx.merge(second_graphdef, second_state)
            if short_side is None:
                dense = trunk(pixels, valid_hw).clip_dense if second_trunk else features.clip_dense
                hw, logits = valid_hw, shrink(prediction.mask_logits, STRIDE // MASK_STRIDE)
            else:
                view = views[short_side]
                view_pixels, hw = normalize_images(view.images, view.image_hw, precision.dtype)
                dense = trunk(view_pixels, hw).clip_dense
                logits = jax.vmap(functools.partial(logits_in_view, grid=dense.shape[1:3]))(
                    prediction.mask_logits, inputs.image_hw, view.image_hw
                )
            masks = dense_masks(logits, hw)
            return trunk.embed_masks(dense, hw, masks), jnp.any(masks, axis=(1, 2))

        probs = [
            model.mix(prediction, *embeddings(way.short_side, way.second_trunk), words.text, way.mixing) for way in ways
        ]
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
"""Placement of `sweep`'s arrays: state, second_state, inputs, views, words, overlap_threshold."""
