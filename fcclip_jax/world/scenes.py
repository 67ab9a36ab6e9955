"""Composes the miniature world's scenes: emoji, turned and scaled, on regions of textures, with exact label maps."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from fcclip_jax.world import words
from fcclip_jax.world.backgrounds import Backgrounds
from fcclip_jax.world.sprites import load_sprites

SHAPE = (256, 256)
SIZES = (48.0, 128.0)
"""The longest side of a scene's objects before they are turned, in pixels."""
VISIBLE = 0.6
"""The least share of an object that later objects leave uncovered."""
REMAINS = 0.25
"""The least share of a background region that all objects together leave uncovered."""
MAX_TURN = 25.0
"""In degrees, either way."""
PLACES = 8
"""Random places that are tried for an object before it is left out."""


class Scene(NamedTuple):
    """A picture with its segments; every pixel belongs to one."""

    image: UInt8[np.ndarray, "H W 3"]
    segment_map: UInt8[np.ndarray, "H W"]
    """Indices into names; each occurs."""
    names: tuple[str, ...]
    """The word of each segment: first the backgrounds, which differ, then the objects, in the order they were placed."""


class _Object(NamedTuple):
    colours: UInt8[np.ndarray, "h w 4"]
    """RGBA; the colours are premultiplied by alpha."""
    mask: Bool[np.ndarray, "h w"]


class World:
    """Scenes of one seed, from sprites of some designs.

    The same seed and generator state give the same pixels, with the same versions of NumPy and OpenCV.
    """

    def __init__(self, designs: Sequence[str], seed: int) -> None:
        """Raises what `sprites.load_sprites` raises."""
        self._seed = seed
        self._backgrounds = Backgrounds(seed)
        drawn = [load_sprites(design) for design in designs]
        self._sprites = {
            word: [_levels(sprites[word]) for sprites in drawn if word in sprites]
            for word in words.THINGS
            if any(word in sprites for sprites in drawn)
        }
        self._things = tuple(self._sprites)

    def scene(self, index: int) -> Scene:
        """Composes scene `index` of this seed: 256x256, of 1 to 3 backgrounds and up to 6 objects of 48 to 128 pixels."""
        rng = np.random.default_rng([self._seed, index])
        backgrounds, objects = int(rng.integers(1, 4)), int(rng.integers(1, 7))
        return self.compose(rng, shape=SHAPE, objects=objects, backgrounds=backgrounds, sizes=SIZES)

    def compose(
        self,
        rng: np.random.Generator,
        *,
        shape: tuple[int, int],
        objects: int,
        backgrounds: int,
        sizes: tuple[int | float, int | float],
    ) -> Scene:
        """Composes a scene with draws from rng alone.

        objects: at most this many; one that would hide too much of another segment at every place tried is left out.
        backgrounds: 1 to 3.
        sizes: the range of the objects' longest side in pixels, before they are turned; an object that is then larger
            than the picture is made smaller.
        """
        segment_map = _regions(rng, shape, backgrounds)
        chosen = rng.permutation(len(words.STUFF))[:backgrounds]
        names = [words.STUFF[word] for word in chosen]
        image = self._background(rng, names[0], shape)
        for region in range(1, backgrounds):
            cv2.copyTo(self._background(rng, names[region], shape), cv2.compare(segment_map, region, cv2.CMP_EQ), image)
        visible = np.bincount(segment_map.ravel(), minlength=backgrounds)
        needed = REMAINS * visible
        for word in rng.integers(len(self._things), size=objects):
            name = self._things[word]
            item = self._object(rng, name, shape, sizes)
            height, width = item.mask.shape
            for top, left in rng.integers(0, (shape[0] - height + 1, shape[1] - width + 1), (PLACES, 2)):
                box = np.s_[top : top + height, left : left + width]
                left_over = visible - np.bincount(segment_map[box][item.mask], minlength=len(names))
                if (left_over >= needed).all():
                    segment_map[box][item.mask] = len(names)
                    image[box] = _over(item.colours, image[box])
                    area = np.count_nonzero(item.mask)
                    visible, needed = np.append(left_over, area), np.append(needed, VISIBLE * area)
                    names.append(name)
                    break
        return Scene(image, segment_map, tuple(names))

    def _background(self, rng: np.random.Generator, word: str, shape: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
        return cv2.transform(self._backgrounds.crop(rng, word, shape), _colour_jitter(rng))

    def _object(
        self, rng: np.random.Generator, name: str, shape: tuple[int, int], sizes: tuple[int | float, int | float]
    ) -> _Object:
        """Draws a design, a size, a turn and colours; the smallest box around alpha > 127."""
        designs = self._sprites[name]
        levels = designs[rng.integers(len(designs))]
        height, width = levels[0].shape[:2]
        turn = np.deg2rad(rng.uniform(-MAX_TURN, MAX_TURN))
        cos, sin = np.cos(turn), np.sin(turn)
        turned_height, turned_width = height * cos + width * abs(sin), width * cos + height * abs(sin)
        scale = min(
            rng.uniform(*sizes) / max(height, width), (shape[0] - 2) / turned_height, (shape[1] - 2) / turned_width
        )
        # The level at most half of whose pixels are skipped, so that shrinking does not alias.
        level = min(max(int(-np.log2(scale)), 0), len(levels) - 1)
        sprite = levels[level]
        centre = np.array([sprite.shape[1] - 1, sprite.shape[0] - 1]) / 2
        stretch = np.array([width * scale / sprite.shape[1], height * scale / sprite.shape[0]])
        if rng.random() < 0.5:
            stretch[0] = -stretch[0]  # mirrored
        size = int(np.ceil(turned_width * scale)) + 2, int(np.ceil(turned_height * scale)) + 2
        turned = np.array([[cos, sin], [-sin, cos]]) * stretch
        place = np.array(size) / 2 - 0.5 - turned @ centre
        warped = cv2.warpAffine(sprite, np.column_stack([turned, place]), size, flags=cv2.INTER_LINEAR)
        jitter = _colour_jitter(rng)
        # Premultiplied colours are offset by alpha's share, and never exceed alpha.
        jitter[:, 3] /= 255
        colours = cv2.transform(warped, np.vstack([jitter, [0, 0, 0, 1]]))
        alpha = warped[..., 3]
        colours = cv2.min(colours, cv2.merge([alpha] * 4))
        x, y, box_width, box_height = cv2.boundingRect(cv2.compare(alpha, 127, cv2.CMP_GT))
        box = np.s_[y : y + box_height, x : x + box_width]
        return _Object(colours[box], alpha[box] > 127)


def _regions(rng: np.random.Generator, shape: tuple[int, int], count: int) -> UInt8[np.ndarray, "H W"]:
    """Divides the picture by wavy lines into regions, each of at least a tenth of the picture."""
    height, width = shape
    region_map = np.zeros(shape, np.uint8)
    while True:
        region_map[:] = 0
        for region in range(1, count):
            turn = rng.uniform(0, 2 * np.pi)
            across = np.array([np.cos(turn), np.sin(turn)])
            along = np.array([-across[1], across[0]])
            steps = np.linspace(-1, 1, 33)
            wave = rng.uniform(0, 0.05) * np.sin(rng.uniform(4, 14) * steps + rng.uniform(0, 2 * np.pi))
            border = (wave + rng.uniform(-0.25, 0.3))[:, None] * across + steps[:, None] * along
            beyond = np.stack([border[-1], border[0]]) + 2 * across
            corners = (np.concatenate([border, beyond]) + 0.5) * np.array([width, height])
            cv2.fillPoly(region_map, [np.round(corners).astype(np.int32)], region)
        if np.bincount(region_map.ravel(), minlength=count).min() >= 0.1 * height * width:
            return region_map


def _levels(sprite: UInt8[np.ndarray, "h w 4"]) -> list[UInt8[np.ndarray, "_ _ 4"]]:
    """The sprite with premultiplied colours, and copies of a half, a quarter and an eighth of its size."""
    alpha = sprite[..., 3:].astype(np.uint16)
    premultiplied = (sprite[..., :3] * alpha + 127) // 255
    levels = [np.concatenate([premultiplied, alpha], axis=-1).astype(np.uint8)]
    for _ in range(3):
        height, width = levels[-1].shape[:2]
        half = (max(1, (width + 1) // 2), max(1, (height + 1) // 2))
        levels.append(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA))
    return levels


def _colour_jitter(rng: np.random.Generator) -> Float[np.ndarray, "3 4"]:
    """A random change of brightness, colour balance and saturation: `colours @ jitter[:, :3].T + jitter[:, 3]`."""
    gains = rng.uniform(0.88, 1.1) * rng.uniform(0.94, 1.06, 3)
    saturation = rng.uniform(0.8, 1.15)
    mixing = saturation * np.eye(3) + (1 - saturation) * np.array([0.299, 0.587, 0.114])
    return np.column_stack([gains[:, None] * mixing, np.full(3, rng.uniform(-10, 10))])


def _over(colours: UInt8[np.ndarray, "h w 4"], ground: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Lays premultiplied colours over an opaque ground."""
    through = cv2.bitwise_not(cv2.merge([colours[..., 3]] * 3))
    return cv2.add(cv2.multiply(ground, through, scale=1 / 255), np.ascontiguousarray(colours[..., :3]))
