"""The network step by step, under the names and in the layouts of the official arrays."""

import jax
import jax.numpy as jnp
from flax import nnx

from fcclip_jax.conventions import STRIDE
from fcclip_jax.models.classifiers import ensemble, mask_pool, shrink, text_logits, void_logits
from fcclip_jax.models.descriptions import EnsembleDescription
from fcclip_jax.models.fcclip import FCCLIP, dense_masks, normalize_images
from fcclip_jax.models.features import Features, PixelFeatures
from fcclip_jax.models.layers import wide_dtype
from fcclip_jax.models.padding import valid_mask
from fcclip_jax.models.pixel_decoder import LEVEL_STRIDES, upsample_twice
from fcclip_jax.models.resnet import ResNet
from fcclip_jax.structs import Prediction, TextClassifier

Arrays = dict[str, jax.Array]


def channels_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)


def sequence_first(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, 0, 1)


def stages(
    model: FCCLIP,
    images: jax.Array,
    image_hw: jax.Array,
    text: TextClassifier,
    masks: tuple[jax.Array, ...],
    forced: jax.Array,
    dtype: str,
    void_trust: float,
) -> Arrays:
    """Every stage for images padded to their own multiple of 32.

    masks: mask logits [B, h, w, Q] of each decoder prediction. They replace the model's own in hard thresholds where
        `forced` [predictions] is true, since a logit near zero that changes its sign affects everything after it.
    dtype: the network's.
    """
    out: Arrays = {}
    pixels, valid_hw = normalize_images(images, image_hw, dtype)
    out["input_padded"] = channels_first(pixels)
    features = trunk_stages(model, pixels, valid_hw, out)
    pixel_features = pixel_stages(model, features, valid_hw, out)
    prediction = mask_stages(model, pixel_features, valid_hw, text, masks, forced, out)
    head = head_stages(model, prediction, features.clip_dense, valid_hw, text, model.ensemble, void_trust)
    out["class_probs"] = head.pop("class_probs")
    return out | {f"out_vocab_{name}": value for name, value in head.items()}


def trunk_stages(model: FCCLIP, pixels: jax.Array, valid_hw: jax.Array, out: Arrays) -> Features:
    trunk = model.clip.image
    if isinstance(trunk, ResNet):
        shape = (pixels.shape[1] // 2, pixels.shape[2] // 2)
        stem = trunk.stem(pixels, valid_mask(valid_hw, shape, 2)[..., None].astype(pixels.dtype))
    else:
        stem = trunk.stem(pixels)
    features = trunk(pixels, valid_hw)
    out["backbone_stem"] = channels_first(stem)
    for name, value in features._asdict().items():
        out[f"backbone_{name.replace('clip_dense', 'clip_vis_dense')}"] = channels_first(value)
    return features


def pixel_stages(model: FCCLIP, features: Features, valid_hw: jax.Array, out: Arrays) -> PixelFeatures:
    decoder = model.pixel_decoder
    tokens, positions, reference, mask, shapes = decoder.flatten(features, valid_hw)
    out["pd_enc_src"], out["pd_enc_pos"] = tokens, positions
    points = jnp.broadcast_to(reference[None, :, None, :], (tokens.shape[0], reference.shape[0], len(shapes), 2))
    out["pd_enc_ref_points"], out["pd_enc_spatial_shapes"] = points, jnp.asarray(shapes)
    for i, level in enumerate(decoder.unflatten(tokens, shapes)):
        out[f"pd_input_proj_{i}"] = channels_first(level)

    if decoder.layers.length:
        graphdef, stacked = nnx.split(decoder.layers.stacked)

        def visit(tokens: jax.Array, layer: nnx.State) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            layer = nnx.merge(graphdef, layer)
            sampled = layer.self_attn(tokens + positions, tokens, reference, mask, shapes)
            tokens = layer(tokens, positions, reference, mask, shapes)
            return tokens, (sampled, tokens)

        tokens, between = jax.lax.scan(visit, tokens, stacked)
        for i, (sampled, after) in enumerate(zip(*between, strict=True)):
            out[f"pd_enc{i}_msdeform_out"], out[f"pd_enc{i}_out"] = sampled, after

    levels = decoder.unflatten(tokens, shapes)
    for i, level in enumerate(levels):
        out[f"pd_multi_scale_{i}"] = channels_first(level)
    mask = valid_mask(valid_hw, features.res2.shape[1:3], 4)[..., None].astype(tokens.dtype)
    lateral = decoder.adapter(features.res2, mask)
    joined = jax.nn.relu(decoder.fpn(lateral + upsample_twice(levels[-1], valid_hw // 8), mask))
    mask_features = decoder.pyramid(features.res2, levels[-1], valid_hw)
    out["pd_adapter_1"], out["pd_layer_1"] = channels_first(lateral), channels_first(joined)
    out["pd_mask_features"] = channels_first(mask_features)
    return PixelFeatures(mask_features, levels)


def mask_stages(
    model: FCCLIP,
    pixels: PixelFeatures,
    valid_hw: jax.Array,
    text: TextClassifier,
    masks: tuple[jax.Array, ...],
    forced: jax.Array,
    out: Arrays,
) -> Prediction:
    """Fills `out`; returns the last prediction, with the mask logits that hard thresholds should read."""
    decoder, void = model.mask_decoder, model.void_embedding[...]
    tokens, positions, valid, small_features = decoder.inputs(pixels, valid_hw)
    queries = decoder.learned_queries(tokens[0])
    query_positions = decoder.query_embed[...][None]
    attend = None
    for i in range(len(decoder.layers) + 1):
        if i:
            layer, level = decoder.layers[i - 1], (i - 1) % len(tokens)
            queries = layer.cross_attend(queries, query_positions, tokens[level], positions[level], attend)
            out[f"dec{i}_after_cross_attn"] = sequence_first(queries)
            queries = layer.self_attend(queries, query_positions)
            out[f"dec{i}_after_self_attn"] = sequence_first(queries)
            queries = layer.feed_forward(queries)
        out[f"dec{i}_output"] = sequence_first(queries)
        normal = decoder.decoder_norm(queries)
        mask_embed = decoder.mask_embed(normal)
        own = jnp.einsum(
            "bhwc,bqc->bhwq", pixels.mask_features, mask_embed, preferred_element_type=wide_dtype(mask_embed)
        )
        hard = jnp.where(forced[i], masks[i], own)
        pooled = mask_pool(pixels.mask_features, hard > 0)
        embeddings = decoder.class_embeddings(normal, hard, pixels.mask_features, valid_hw)
        scale = decoder.logit_scale[...]
        classes = text_logits(embeddings, text, scale), void_logits(embeddings, void, scale)
        class_logits = jnp.concatenate(classes, axis=-1)
        level = i % len(tokens)
        own_attend = decoder.attention_mask(normal, small_features[level], valid[level])
        attend = jnp.where(forced[i], attention_mask(masks[i], LEVEL_STRIDES[level], valid[level]), own_attend)
        out[f"dec{i}_mask_embed"] = mask_embed
        out[f"dec{i}_mask_pooled_in_vocab"] = pooled
        out[f"dec{i}_mask_pooled_proj"] = decoder.pool_proj(decoder.pool_norm(pooled))
        out[f"dec{i}_class_embed"] = embeddings
        out[f"dec{i}_pred_logits"] = class_logits
        out[f"dec{i}_pred_masks"] = channels_first(own)
        out[f"dec{i}_attn_mask_head0"] = ~attend
    return Prediction(hard, class_logits)


def attention_mask(mask_logits: jax.Array, stride: int, valid: jax.Array) -> jax.Array:
    """Returns the cells that a query may attend to, from full mask logits: the official definition."""
    small = shrink(mask_logits, stride // 4)
    inside = (small.reshape(small.shape[0], -1, small.shape[-1]).swapaxes(1, 2) >= 0) & valid
    return jnp.where(jnp.any(inside, axis=-1, keepdims=True), inside, valid)


def head_stages(
    model: FCCLIP,
    prediction: Prediction,
    clip_dense: jax.Array,
    valid_hw: jax.Array,
    text: TextClassifier,
    mixing: EnsembleDescription,
    void_trust: float = 0.0,
) -> Arrays:
    """Runs the stages after the mask decoder: CLIP's classification of the masks, and the class probabilities."""
    shrunk = shrink(prediction.mask_logits, STRIDE // 4)
    masks = dense_masks(shrunk, valid_hw)
    embeddings = model.clip.image.embed_masks(clip_dense, valid_hw, masks)
    scale = model.clip.logit_scale[...]
    logits = text_logits(embeddings, text, scale), void_logits(embeddings, model.void_embedding[...], scale)
    # Fused with what comes before it, the concatenation does not compile for an H100 with jax 0.11.2: "Reshape input and
    # output shapes must be the same", of tiles that are rounded up to powers of two.
    logits = jax.lax.optimization_barrier(logits)
    return {
        "mask_for_pooling": channels_first(shrunk),
        "mask_pooled": mask_pool(clip_dense, masks),
        "clip_feature": embeddings,
        "logits": jnp.concatenate(logits, axis=-1),
        "class_probs": ensemble(
            prediction.class_logits, logits[0], text.seen, jnp.any(masks, axis=(1, 2)), mixing, void_trust
        ),
    }
