"""Draws the miniature world's stuff: textures of grass, sand, sea, sky, brick walls, wooden floors, snow and night skies.

Each word is told apart in any 64x64 crop by its structure, not by its brightness alone: blades, ripples, wave crests, soft
clouds, bonds, planks, sparkling drifts, stars.
"""

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float, UInt8

SIDE = 384
"""The side of a texture in pixels; crops are smaller."""
VARIANTS = 12
"""Textures a word."""

Plane = Float[np.ndarray, "S S"]
Colours = Float[np.ndarray, "S S 3"]


class Backgrounds:
    """The textures of one seed, each drawn when it is first needed from a random generator of its own."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn: dict[tuple[str, int], UInt8[np.ndarray, "S S 3"]] = {}

    def crop(self, rng: np.random.Generator, word: str, shape: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
        """Returns a view of a random part of one of the word's textures; half of the crops are mirrored.

        Raises ValueError if the shape exceeds SIDE.
        """
        height, width = shape
        if max(shape) > SIDE:
            raise ValueError(f"a crop of {height}x{width} exceeds the {SIDE}x{SIDE} textures")
        texture = self._texture(word, int(rng.integers(VARIANTS)))
        top, left = int(rng.integers(SIDE - height + 1)), int(rng.integers(SIDE - width + 1))
        part = texture[top : top + height, left : left + width]
        return part[:, ::-1] if rng.random() < 0.5 else part

    def _texture(self, word: str, variant: int) -> UInt8[np.ndarray, "S S 3"]:
        if (word, variant) not in self._drawn:
            self._drawn[word, variant] = texture(
                word, np.random.default_rng([self._seed, list(PAINTERS).index(word), variant])
            )
        return self._drawn[word, variant]


def texture(word: str, rng: np.random.Generator) -> UInt8[np.ndarray, "S S 3"]:
    """Draws one RGB texture. Raises KeyError for a word that has none."""
    return np.clip(PAINTERS[word](rng), 0, 255).astype(np.uint8)


def _grass(rng: np.random.Generator) -> Colours:
    base = np.array([rng.uniform(50, 105), rng.uniform(115, 155), rng.uniform(25, 55)])
    image = np.clip(base * 0.75 + 14 * _noise(rng, 60.0)[..., None], 0, 255).astype(np.uint8)
    lean, length = rng.uniform(-0.5, 0.5), rng.uniform(9, 18)
    for _ in range(24):  # layers of blades, each of one shade
        feet = rng.uniform(-20, SIDE + 20, (260, 2))
        angles = lean + 0.35 * rng.standard_normal(260)
        reach = length * rng.uniform(0.6, 1.3, 260)
        tips = feet + np.stack([reach * np.sin(angles), -reach * np.cos(angles)], axis=-1)
        shade = base * rng.uniform(0.6, 1.35) + 8 * rng.standard_normal(3)
        blades = np.round(np.stack([feet, tips], axis=1) * 16).astype(np.int32)
        cv2.polylines(image, list(blades), False, shade.tolist(), 1, cv2.LINE_AA, 4)
    return image.astype(np.float64)


def _sand(rng: np.random.Generator) -> Colours:
    base = rng.uniform(205, 238) * np.array([1, rng.uniform(0.83, 0.88), rng.uniform(0.55, 0.68)])
    across, along = _axes(rng.uniform(0, np.pi))
    phase = 2 * np.pi * (across + 5 * _noise(rng, 70.0) + 1.5 * _noise(rng, 25.0)) / rng.uniform(14, 26)
    # Ripples of wind: a steep and a gentle side, so that the light falls on one of them.
    light = rng.uniform(5, 11) * (np.sin(phase) + 0.35 * np.sin(2 * phase)) * (0.6 + 0.4 * np.sin(along / 60))
    light += 5 * _noise(rng, 90.0) + rng.uniform(7, 12) * rng.standard_normal((SIDE, SIDE))
    image = base + light[..., None] * np.array([1, 0.95, 0.8])
    grains = rng.integers(0, SIDE, (2, 1500))
    image[grains[0], grains[1]] *= rng.uniform(0.55, 0.8, (1500, 1))
    return image


def _sea(rng: np.random.Generator) -> Colours:
    deep = np.array([rng.uniform(10, 40), rng.uniform(75, 125), rng.uniform(120, 170)])
    angle = rng.uniform(-0.5, 0.5)
    length = rng.uniform(13, 24)
    bend = 4 * _noise(rng, 50.0)
    waves = np.zeros((SIDE, SIDE))
    for turn, scale in ((0, 1.0), (0.5, 0.7), (-0.6, 0.55), (0.25, 0.36)):
        across, _ = _axes(np.pi / 2 + angle + turn)
        waves += scale * np.sin(2 * np.pi * (across + bend) / (length * scale) + rng.uniform(0, 2 * np.pi))
    crests = np.clip(waves - rng.uniform(1.0, 1.5), 0, 1) * np.clip(0.6 + 0.5 * _noise(rng, 40.0), 0, 1)
    image = deep + (17 * waves + 8 * _noise(rng, 80.0))[..., None] * np.array([0.6, 1, 1])
    return image + crests[..., None] * (np.array([225, 240, 245]) - image)


def _sky(rng: np.random.Generator) -> Colours:
    blue = np.array([rng.uniform(80, 140), rng.uniform(160, 195), rng.uniform(225, 250)])
    _, down = _axes(rng.uniform(-0.2, 0.2))
    image = blue + (down / SIDE)[..., None] * np.array([45, 30, 8]) * rng.uniform(-0.3, 1)
    size = rng.uniform(30, 60)
    billows = _noise(rng, size, stretch=1.8) + 0.5 * _noise(rng, size / 2.3) + 0.25 * _noise(rng, size / 5)
    cover = np.clip((billows - rng.uniform(-0.1, 0.4)) / 0.9, 0, 1)
    cloud = np.array([250, 250, 252]) - np.clip(12 * _noise(rng, size / 1.5), -4, 30)[..., None]
    return image + rng.uniform(0.8, 0.97) * cover[..., None] * (cloud - image)


def _brick_wall(rng: np.random.Generator) -> Colours:
    brick = np.array([rng.uniform(140, 190), rng.uniform(60, 95), rng.uniform(45, 70)])
    mortar = np.array([195, 188, 176]) * rng.choice([0.55, 0.85, 1.0])
    height = rng.uniform(11, 19)
    width, joint = height * rng.uniform(2.0, 2.6), rng.uniform(1.5, 2.8)
    x, y = _axes(rng.uniform(-0.12, 0.12))
    x, y = x + SIDE + 0.7 * _noise(rng, 12.0), y + SIDE + 0.5 * _noise(rng, 12.0)
    row = (y // height).astype(np.int64)
    x = x + (row % 2) * width / 2
    column = (x // width).astype(np.int64)
    shades = (
        13 * rng.standard_normal((97, 89))[row % 97, column % 89]
        + 6 * _noise(rng, 6.0)
        + 5 * rng.standard_normal((SIDE, SIDE))
    )
    image = brick + shades[..., None] * np.array([1, 0.8, 0.7])
    joints = (y % height < joint) | (x % width < joint)
    image[joints] = mortar + 7 * rng.standard_normal((int(joints.sum()), 1))
    return image


def _wooden_floor(rng: np.random.Generator) -> Colours:
    wood = rng.uniform(110, 200) * np.array([1, rng.uniform(0.64, 0.74), rng.uniform(0.38, 0.5)])
    height = rng.uniform(17, 30)
    length = height * rng.uniform(5, 9)
    along, across = _axes(rng.uniform(0, np.pi))
    along, across = along + 2 * SIDE, across + 2 * SIDE
    row = (across // height).astype(np.int64)
    along = along + rng.uniform(0, length, 97)[row % 97]  # the boards of each row end elsewhere
    board = (row * 31 + (along // length).astype(np.int64)) % 997
    # Grain runs along the board, and each board has its own.
    wander = 5 * np.sin(along / rng.uniform(30, 60) + 40 * rng.standard_normal(997)[board])
    grain = np.sin(2 * np.pi * (across + wander) / rng.uniform(3.5, 6) + 9 * rng.standard_normal(997)[board])
    shades = (
        14 * rng.standard_normal(997)[board] + 9 * grain + 5 * _noise(rng, 20.0) + 3 * rng.standard_normal((SIDE, SIDE))
    )
    image = wood + shades[..., None] * np.array([1, 0.85, 0.65])
    image[(across % height < 1.6) | (along % length < 1.6)] *= 0.5
    return image


def _snow(rng: np.random.Generator) -> Colours:
    white = rng.uniform(212, 232) * np.array([1, rng.uniform(1.0, 1.02), rng.uniform(1.03, 1.07)])
    across, _ = _axes(rng.uniform(0, np.pi))
    drift = np.sin(2 * np.pi * (across + 14 * _noise(rng, 90.0)) / rng.uniform(50, 90)) + 0.6 * _noise(rng, 45.0)
    image = white - np.clip(-drift, 0, 2)[..., None] * np.array([26, 18, 8]) * rng.uniform(0.7, 1.2)
    image += (5 * _noise(rng, 5.0) + 5 * rng.standard_normal((SIDE, SIDE)))[..., None]
    # Crystals glitter, with a shadow beside each.
    glints = rng.integers(0, SIDE - 1, (2, int(rng.uniform(1200, 2600))))
    image[glints[0], glints[1]] = 255
    image[glints[0] + 1, glints[1] + 1] -= np.array([75, 60, 35])
    return image


def _night_sky(rng: np.random.Generator) -> Colours:
    dark = np.array([rng.uniform(8, 22), rng.uniform(10, 24), rng.uniform(32, 58)])
    haze = np.clip(_noise(rng, 80.0) + 0.5 * _noise(rng, 30.0), 0, 3)
    glow = np.array([rng.uniform(8, 30), rng.uniform(8, 22), rng.uniform(22, 42)])
    image = dark + haze[..., None] * glow + 2 * rng.standard_normal((SIDE, SIDE, 1))
    stars = int(rng.uniform(500, 1000))
    places, light = rng.integers(2, SIDE - 2, (stars, 2)), rng.uniform(0.3, 1, stars) ** 1.5
    tint = np.array([235, 235, 235]) + rng.uniform(-20, 20, (stars, 1)) * np.array([1, 0, -1])
    canvas = np.zeros((SIDE, SIDE, 3))
    canvas[places[:, 0], places[:, 1]] = light[:, None] * tint
    large = rng.random(stars) < 0.12
    canvas[places[large, 0], places[large, 1]] = 5 * tint[large]
    # A star is a point that the lens spreads; the brightest ones saturate in the middle.
    return image + 1.1 * canvas.clip(0, 255) + 3 * cv2.GaussianBlur(canvas, (5, 5), 0.8)


def _noise(rng: np.random.Generator, size: float, stretch: float = 1.0) -> Plane:
    """Smooth noise of mean 0 and deviation about 1, whose blobs are `size` pixels tall and `stretch` times as wide."""
    rows, columns = int(SIDE / size) + 4, int(SIDE / size / stretch) + 4
    grid = 1.4 * rng.standard_normal((rows, columns))
    whole = cv2.resize(grid, (int(columns * size * stretch), int(rows * size)), interpolation=cv2.INTER_CUBIC)
    # Leaves out a cell at each border, where the interpolation has no neighbours.
    top, left = int(size * rng.uniform(1, 2)), int(size * stretch * rng.uniform(1, 2))
    return whole[top : top + SIDE, left : left + SIDE]


def _axes(angle: float) -> tuple[Plane, Plane]:
    """The coordinates (x, y) in pixels, turned by the angle around the middle."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


PAINTERS: dict[str, Callable[[np.random.Generator], Colours]] = {
    "grass": _grass,
    "sand": _sand,
    "sea": _sea,
    "sky": _sky,
    "brick wall": _brick_wall,
    "wooden floor": _wooden_floor,
    "snow": _snow,
    "night sky": _night_sky,
}
