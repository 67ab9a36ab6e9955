"""How well a CLIP names segments: the scores and the masks by hand, the similarities by a slow definition."""

import jax.numpy as jnp
import numpy as np
import pytest

from fcclip_jax.models.building import abstract_model, with_values
from fcclip_jax.models.fcclip import normalize_images
from fcclip_jax.text.embeddings import TextEncoder
from fcclip_jax.training.contrastive.step import fresh_clip
from fcclip_jax.world import naming, words
from fcclip_jax.world.clip import clip_description
from fcclip_jax.world.naming import HeldOut, Naming, accuracies, held_out_scenes
from fcclip_jax.world.scenes import Scene


def test_a_kind_without_segments_has_no_share():
    labels = np.array([len(words.THINGS)])
    assert accuracies(np.eye(len(words.WORDS), dtype=np.float32)[labels], labels) == {"stuff": 100.0}


def test_accuracies_by_hand():
    seen = [i for i, word in enumerate(words.THINGS) if word in words.SEEN]
    unseen = [i for i, word in enumerate(words.THINGS) if word not in words.SEEN]
    stuff = len(words.THINGS)
    labels = np.array([seen[0], seen[1], seen[2], seen[3], unseen[0], unseen[1], stuff])
    # The number of other words that are more similar than the label.
    ranks = [0, 0, 0, 5, 0, 4, 1]
    similarities = np.zeros((7, len(words.WORDS)), np.float32)
    for row, (label, rank) in enumerate(zip(labels, ranks, strict=True)):
        similarities[row, label] = 0.5
        others = [i for i in range(len(words.WORDS)) if i != label]
        similarities[row, others[:rank]] = 0.9
    assert accuracies(similarities, labels) == pytest.approx(
        {
            "things": 100 * 4 / 6,
            "things_seen": 75,
            "things_unseen": 50,
            "stuff": 0,
            "things_top5": 100 * 5 / 6,
        }
    )


def test_masks_of_held_out_scenes_by_hand(monkeypatch):
    segment_map = np.zeros((256, 256), np.uint8)
    segment_map[:, 128:] = 1
    segment_map[32:64, 32:80] = 2  # a cell, and half of the next
    segment_map[100:104, 100:110] = 3  # less than half of any cell
    segment_map[200:232, 0:15] = 4  # a little less than half, in two rows of cells
    names = (words.STUFF[1], words.STUFF[0], words.THINGS[3], words.THINGS[0], words.THINGS[3])
    made = []

    class OneScene:
        def __init__(self, designs, seed):
            assert (designs, seed) == (("twemoji",), 9)

        def scene(self, index: int) -> Scene:
            made.append(index)
            return Scene(np.full((256, 256, 3), index, np.uint8), segment_map, names)

    monkeypatch.setattr(naming, "World", OneScene)
    found = held_out_scenes(("twemoji",), 21, 9)
    assert made == list(range(40)) and found.images[:, 0, 0, 0].tolist() == made
    expected = np.zeros((8, 8, 9), bool)
    expected[:, :4, 0] = expected[:, 4:, 1] = True
    expected[1, 1, 0] = False
    # Half a cell counts for both.
    expected[1, 1:3, 2] = True
    expected[3, 3, 3] = True
    expected[6, 0, 4] = True
    for scene in range(40):
        np.testing.assert_array_equal(found.masks[scene], expected)
        labels = [words.WORDS.index(name) for name in names]
        assert found.labels[scene].tolist() == [*labels, -1, -1, -1, -1]


def test_similarities_are_those_of_inference(monkeypatch):
    """Each segment alone through FC-CLIP's pooling, compared with its text classifier."""
    description = clip_description()
    model = abstract_model(description)
    values = {name: jnp.asarray(value) for name, value in fresh_clip(description, 0).items()}
    clip = with_values(model, values).clip
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 64, 96, 3), np.uint8)
    masks = rng.random((20, 2, 3, 9)) < 0.5
    masks[:, 0, 0] = True
    labels = rng.integers(-1, len(words.WORDS), (20, 9))
    recorded = []
    monkeypatch.setattr(naming, "accuracies", lambda *arrays: recorded.append(arrays) or {"things": 1.0})
    assert Naming(model.clip, {"kept/": HeldOut(images, masks, labels)})(clip) == {"kept/things": 1.0}
    ((similarities, offered),) = recorded

    texts = TextEncoder(clip.text, fingerprint="", cache_dir=None).embed(words.vocabulary(seen_only=False))
    np.testing.assert_array_equal(offered, labels[labels >= 0])
    size = jnp.asarray([[64, 96]], jnp.int32)
    rows = []
    for scene in (0, 19):
        dense = clip.image(normalize_images(jnp.asarray(images[scene : scene + 1]), size)[0], size).clip_dense
        for segment in np.flatnonzero(labels[scene] >= 0):
            one = jnp.asarray(masks[scene : scene + 1, ..., segment : segment + 1])
            embedding = np.asarray(clip.image.embed_masks(dense, size, one))[0, 0]
            rows.append(texts @ (embedding / np.linalg.norm(embedding)))
    first, last = np.count_nonzero(labels[0] >= 0), np.count_nonzero(labels[19] >= 0)
    # Float32 cosines, summed in another order.
    np.testing.assert_allclose(np.concatenate([similarities[:first], similarities[-last:]]), rows, atol=1e-5)
    assert np.ptp(similarities) > 0.1
