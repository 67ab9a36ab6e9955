"""Measures how well a CLIP names the segments of held-out scenes by its pooled dense features: what FC-CLIP needs of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from fcclip_jax.conventions import STRIDE
from fcclip_jax.models.classifiers import normalize
from fcclip_jax.models.fcclip import CLIP, normalize_images
from fcclip_jax.text.embeddings import aggregate
from fcclip_jax.text.prompts import PROMPT_TEMPLATES
from fcclip_jax.text.tokenizer import table_rows, tokenize
from fcclip_jax.world import words
from fcclip_jax.world.scenes import SHAPE, World

BATCH = 20
"""Scenes that are embedded at once."""
MOST_SEGMENTS = 9
"""Three backgrounds and six objects."""


class HeldOut(NamedTuple):
    """Scenes with the cells of each segment at stride 32. S: scenes, G: segments, empty ones last."""

    images: UInt8[np.ndarray, "S H W 3"]
    masks: Bool[np.ndarray, "S h w G"]
    labels: Int[np.ndarray, "S G"]
    """Indices into words.WORDS, -1 for empty segments."""


def held_out_scenes(designs: Sequence[str], count: int, seed: int) -> HeldOut:
    """Composes scenes, and shrinks their segments to cells: those that a segment covers by half, and those it covers most.

    count: is rounded up to a multiple of BATCH.
    """
    count = -(-count // BATCH) * BATCH
    world = World(designs, seed)
    height, width = (side // STRIDE for side in SHAPE)
    images = np.empty((count, *SHAPE, 3), np.uint8)
    masks = np.zeros((count, height, width, MOST_SEGMENTS), bool)
    labels = np.full((count, MOST_SEGMENTS), -1)
    for i in range(count):
        scene = world.scene(i)
        images[i] = scene.image
        for segment, name in enumerate(scene.names):
            share = (scene.segment_map == segment).reshape(height, STRIDE, width, STRIDE).mean(axis=(1, 3))
            masks[i, ..., segment] = (share >= 0.5) | (share == share.max())
            labels[i, segment] = words.WORDS.index(name)
    return HeldOut(images, masks, labels)


class Naming:
    """Measures a CLIP on held-out scenes, all words offered."""

    def __init__(self, clip: CLIP, scenes: Mapping[str, HeldOut]):
        """Prepares the programs for all CLIPs of one description.

        clip: such a CLIP; its values, if any, are not used.
        scenes: by the prefix of their scores' names.
        """
        self._scenes = scenes
        prompts = [template.format(word) for word in words.WORDS for template in PROMPT_TEMPLATES]
        tokens = tokenize(prompts, clip.text.positional_embedding.shape[0])
        if clip.text.token_ids is not None:
            tokens = table_rows(tokens, clip.text.token_ids, prompts)
        self._tokens = tokens[:, : int(np.argmax(tokens, axis=1).max()) + 1]
        graphdef, _ = nnx.split(clip)

        @jax.jit
        def embed_texts(state: nnx.State, tokens: Int[Array, "N L"]) -> Float[Array, "N E"]:
            return nnx.merge(graphdef, state).text(tokens)

        @jax.jit
        def embed_segments(
            state: nnx.State, images: UInt8[Array, "B H W 3"], masks: Bool[Array, "B h w G"]
        ) -> Float[Array, "B G E"]:
            image_tower = nnx.merge(graphdef, state).image
            whole = jnp.broadcast_to(jnp.asarray(images.shape[1:3], jnp.int32), (images.shape[0], 2))
            normal, valid_hw = normalize_images(images, whole)
            cells = STRIDE // image_tower.stride
            masks = jnp.repeat(jnp.repeat(masks, cells, axis=1), cells, axis=2)
            return normalize(image_tower.embed_masks(image_tower(normal, valid_hw).clip_dense, valid_hw, masks))

        self._embed_texts, self._embed_segments = embed_texts, embed_segments

    def __call__(self, clip: CLIP) -> dict[str, float]:
        """Returns the scores of `accuracies` for a CLIP with values, by name, with the prefix of their scenes."""
        state = nnx.state(clip)
        texts = aggregate(np.asarray(self._embed_texts(state, self._tokens)))
        found = {}
        for prefix, scenes in self._scenes.items():
            embeddings = np.concatenate(
                [
                    np.asarray(self._embed_segments(state, scenes.images[i : i + BATCH], scenes.masks[i : i + BATCH]))
                    for i in range(0, len(scenes.images), BATCH)
                ]
            )
            real = scenes.labels >= 0
            found |= {
                f"{prefix}{name}": value
                for name, value in accuracies(embeddings[real] @ texts.T, scenes.labels[real]).items()
            }
        return found


def accuracies(similarities: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> dict[str, float]:
    """Returns the shares of segments whose word is the most similar one, in percent, by kind; of things, also among five.

    A kind without a segment has no share.

    labels: indices into words.WORDS.
    """
    own = np.take_along_axis(similarities, labels[:, None], axis=1)
    rank = np.count_nonzero(similarities > own, axis=1)
    thing = labels < len(words.THINGS)
    seen = np.array([word in words.SEEN for word in words.WORDS])[labels]
    groups = {"things": thing, "things_seen": thing & seen, "things_unseen": thing & ~seen, "stuff": ~thing}
    found = {name: 100 * float(np.mean(rank[rows] == 0)) for name, rows in groups.items() if rows.any()}
    return found | ({"things_top5": 100 * float(np.mean(rank[thing] < 5))} if thing.any() else {})
