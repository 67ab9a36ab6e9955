"""The miniature world as a dataset: annotations are the scenes', unseen words are void, splits differ."""

import pickle

import numpy as np
import pytest

from fcclip_jax.data import decoding
from fcclip_jax.data.pipeline import train_batches
from fcclip_jax.data.records import Dataset
from fcclip_jax.world import words
from fcclip_jax.world.panoptic import DESIGNS, SPLITS, WorldDataset
from fcclip_jax.world.scenes import World


def test_records_are_the_scenes():
    dataset = WorldDataset("val", 20, seen_only=False)
    assert isinstance(dataset, Dataset) and len(dataset) == 20
    name_of = {entry.id: entry.name for entry in dataset.vocabulary.classes}
    scenes = World(DESIGNS["training"], SPLITS.index("val"))
    for index in (0, 7):
        image, segments = decoding.decode(dataset[index])
        scene = scenes.scene(index)
        assert np.array_equal(image, scene.image)
        assert np.array_equal(segments.segment_map, scene.segment_map)
        assert tuple(name_of[category] for category in segments.categories.tolist()) == scene.names


def test_unseen_words_are_void():
    everything, seen = (WorldDataset("train", 40, seen_only=choice) for choice in (False, True))
    assert {entry.name for entry in seen.vocabulary.classes} == words.SEEN
    void = 0
    for index in range(40):
        whole, part = everything[index], seen[index]
        assert whole.image == part.image
        ids, kept = decoding.decode_ids(whole.panoptic), decoding.decode_ids(part.panoptic)
        names = {
            int(id): everything.vocabulary.classes[category - 1].name for id, category, _ in whole.segments.tolist()
        }
        unseen = [id for id, name in names.items() if name not in words.SEEN]
        assert np.array_equal(kept, np.where(np.isin(ids, unseen), 0, ids))
        assert {int(id): seen.vocabulary.classes[category - 1].name for id, category, _ in part.segments.tolist()} == {
            id: name for id, name in names.items() if name in words.SEEN
        }
        void += np.count_nonzero(kept == 0)
    assert 0.05 < void / (40 * 256 * 256) < 0.5


def test_splits_and_designs_share_no_scene():
    datasets = [WorldDataset(split, 5, seen_only=False) for split in SPLITS]
    datasets.append(WorldDataset("test", 5, seen_only=False, designs="kept_back"))
    datasets.append(WorldDataset("train", 5, seen_only=False, seed=1))
    images = {dataset[index].image for dataset in datasets for index in range(5)}
    assert len(images) == 5 * len(datasets)
    assert len({dataset.digest for dataset in datasets}) == len(datasets)


def test_a_copy_for_another_process_is_small_and_equal():
    dataset = WorldDataset("train", 5, seen_only=True)
    copy = pickle.dumps(dataset)
    assert len(copy) < 100_000  # bytes: the words, and no sprites
    found, expected = pickle.loads(copy)[3], dataset[3]
    assert (found.image, found.panoptic) == (expected.image, expected.panoptic)


def test_batches_see_the_range_of_the_jitter():
    """Only a scale below 1 leaves padding, whose segments are none and whose colour is grey."""
    dataset = WorldDataset("train", 8, seen_only=False)

    def padded(jitter: tuple[float, float]) -> list[bool]:
        options = {"crop": 64, "batch_size": 8, "process_index": 0, "process_count": 1, "seed": 0, "jitter": jitter}
        batches = train_batches(dataset, **options)
        batch = next(batches).batch
        batches.close()
        return [bool((image[-1] == 128).all()) for image in batch.images]

    assert not any(padded((1.0, 1.35)))
    assert all(padded((0.5, 0.9)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("all", 5), "the miniature world has no split 'all'; choose one of train, val, test"),
        (("train", 5, "noto"), "the miniature world has no designs 'noto'; choose one of training, kept_back"),
    ],
)
def test_refusals(arguments, message):
    split, images, *designs = arguments
    with pytest.raises(ValueError, match=message):
        WorldDataset(split, images, seen_only=True, **dict(zip(["designs"], designs, strict=False)))
