"""Scenes: determinism, complete and exact label maps, visibility."""

import numpy as np
import pytest

from fcclip_jax.world import scenes, words
from fcclip_jax.world.scenes import VISIBLE, World

DESIGNS = ("twemoji",)


@pytest.fixture(scope="module")
def world() -> World:
    return World(DESIGNS, 7)


def test_the_seed_and_the_index_decide(world):
    again, other = World(DESIGNS, 7), World(DESIGNS, 8)
    again.scene(5)  # earlier scenes change nothing
    for index in (0, 3):
        first, second = world.scene(index), again.scene(index)
        assert np.array_equal(first.image, second.image) and np.array_equal(first.segment_map, second.segment_map)
        assert first.names == second.names
    assert not np.array_equal(world.scene(0).image, other.scene(0).image)
    assert not np.array_equal(world.scene(0).image, world.scene(1).image)


def test_every_pixel_belongs_to_a_segment_and_every_segment_has_pixels(world):
    counts = []
    for index in range(60):
        scene = world.scene(index)
        assert scene.image.shape == (256, 256, 3)
        assert np.unique(scene.segment_map).tolist() == list(range(len(scene.names)))
        backgrounds = [name for name in scene.names if name in words.STUFF]
        assert scene.names[: len(backgrounds)] == tuple(backgrounds) and len(set(backgrounds)) == len(backgrounds)
        assert all(name in words.THINGS for name in scene.names[len(backgrounds) :])
        counts.append((len(backgrounds), len(scene.names) - len(backgrounds)))
    assert {backgrounds for backgrounds, _ in counts} == {1, 2, 3}
    assert {1, 2, 3, 4, 5, 6} >= {objects for _, objects in counts} >= {1, 2, 3, 4, 5}


def test_objects_stay_visible(world, monkeypatch):
    """Six large objects on a small picture overlap; at least 60 % of each one's mask stays in the map."""
    areas: list[int] = []
    draw = World._object

    def recorded(self, *arguments):
        drawn = draw(self, *arguments)
        areas.append(np.count_nonzero(drawn.mask))
        return drawn

    monkeypatch.setattr(World, "_object", recorded)
    overlaps = 0
    for seed in range(30):
        areas.clear()
        rng = np.random.default_rng(seed)
        scene = world.compose(rng, shape=(128, 160), objects=6, backgrounds=1, sizes=(40.0, 70.0))
        visible = np.bincount(scene.segment_map.ravel())[1:]
        # The objects that were placed are a subsequence of those that were drawn.
        drawn = iter(areas)
        for pixels in visible:
            area = next(area for area in drawn if area >= pixels >= VISIBLE * area)
            overlaps += pixels < area
        assert np.bincount(scene.segment_map.ravel())[0] >= 0.25 * 128 * 160
    assert overlaps > 10


def test_a_scene_by_hand(world, monkeypatch):
    """A red square that is not turned lies on a black ground, exactly where the map has it."""
    square = np.zeros((20, 30, 4), np.uint8)
    square[..., 0] = square[..., 3] = 255
    monkeypatch.setattr(world, "_sprites", {"cat": [scenes._levels(square)]})
    monkeypatch.setattr(world, "_things", ("cat",))
    monkeypatch.setattr(scenes, "MAX_TURN", 0.0)
    monkeypatch.setattr(scenes, "_colour_jitter", lambda rng: np.eye(3, 4))
    monkeypatch.setattr(world._backgrounds, "crop", lambda rng, word, shape: np.zeros((*shape, 3), np.uint8))
    scene = world.compose(np.random.default_rng(0), shape=(64, 80), objects=1, backgrounds=1, sizes=(30.0, 30.0))
    assert scene.names[1:] == ("cat",)
    mask = scene.segment_map == 1
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert (len(rows), len(columns), np.count_nonzero(mask)) == (20, 30, 600)
    assert np.array_equal(scene.image[..., 0], 255 * mask)
    assert not scene.image[..., 1:].any()


def test_a_half_transparent_edge():
    """Alpha 128 is the object's and 127 is not; both mix with the ground."""
    colours = np.array([[[64, 0, 0, 128], [64, 0, 0, 127]]], np.uint8)
    ground = np.array([[[0, 200, 0], [0, 200, 0]]], np.uint8)
    assert scenes._over(colours, ground).tolist() == [[[64, 100, 0], [64, 100, 0]]]  # 200 * 127 / 255 = 99.6; 100.4


def test_shrunken_levels_premultiply():
    """A white pixel beside transparent black ones keeps its colour as it shrinks: colour and alpha shrink alike."""
    sprite = np.zeros((2, 2, 4), np.uint8)
    sprite[0, 0] = (255, 255, 255, 255)
    sprite[1, 1] = (255, 0, 0, 0)  # a colour that nobody sees
    levels = scenes._levels(sprite)
    assert levels[0][1, 1].tolist() == [0, 0, 0, 0]
    assert levels[1].tolist() == [[[64, 64, 64, 64]]]


def test_small_objects_do_not_alias(world, monkeypatch):
    """Stripes of one pixel turn grey at a quarter of their size; sampling the full-size sprite would keep black and white."""
    stripes = np.full((128, 128, 4), 255, np.uint8)
    stripes[:, ::2, :3] = 0
    monkeypatch.setattr(world, "_sprites", {"cat": [scenes._levels(stripes)]})
    monkeypatch.setattr(scenes, "MAX_TURN", 0.0)
    monkeypatch.setattr(scenes, "_colour_jitter", lambda rng: np.eye(3, 4))
    item = world._object(np.random.default_rng(0), "cat", (64, 64), (32.0, 32.0))
    inner = item.colours[4:-4, 4:-4, 0]
    assert inner.min() > 110 and inner.max() < 145


def test_objects_that_are_too_large_are_made_smaller(world):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = world.compose(rng, shape=(48, 64), objects=1, backgrounds=1, sizes=(200.0, 300.0))
        # One that fills more than 75 % of the picture, such as a square card, is left out.
        assert len(scene.names) in (1, 2)
        item = world._object(rng, "cat", (48, 64), (200.0, 300.0))
        assert max(item.mask.shape[0] / 48, item.mask.shape[1] / 64) > 0.7
        assert item.mask.shape[0] <= 48 and item.mask.shape[1] <= 64


def test_regions_are_large_enough():
    for seed in range(40):
        regions = scenes._regions(np.random.default_rng(seed), (64, 96), 3)
        assert np.bincount(regions.ravel(), minlength=3).min() >= 0.1 * 64 * 96


def test_colours_change_a_little_and_masks_do_not(world, monkeypatch):
    """The same draws with and without the jitter of colours."""
    item = world._object(np.random.default_rng(1), "apple", (256, 256), (96.0, 96.0))
    plain = scenes._colour_jitter
    monkeypatch.setattr(scenes, "_colour_jitter", lambda rng: (plain(rng), np.eye(3, 4))[1])
    same = world._object(np.random.default_rng(1), "apple", (256, 256), (96.0, 96.0))
    assert np.array_equal(item.mask, same.mask)
    change = np.abs(item.colours[item.mask].astype(int) - same.colours[item.mask])[:, :3].mean()
    assert 0.5 < change < 60
    assert (item.colours[..., :3] <= item.colours[..., 3:]).all()
