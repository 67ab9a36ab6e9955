"""The sprites of the miniature world: complete, cut out tightly, and different in every design."""

import itertools
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.world import sprites, words
from fcclip_jax.world.emoji_sets import SETS

COUNTS = {
    "twemoji": 275,
    "fluent": 275,
    "openmoji": 275,
    "emojione": 202,
    "emojione_v1": 161,
    "fxemoji": 159,
    "streamline": 120,
    "noto": 275,
}
FOLDER = pathlib.Path(sprites.__file__).parent / "sprites"


def test_designs():
    assert (*sprites.TRAINING_DESIGNS, sprites.KEPT_BACK) == tuple(COUNTS) == tuple(SETS)
    assert {path.stem for path in FOLDER.glob("*.zip")} == set(COUNTS)
    assert "noto" not in sprites.TRAINING_DESIGNS


@pytest.mark.parametrize("design", COUNTS)
def test_words(design):
    found = list(sprites.load_sprites(design))
    assert len(found) == COUNTS[design]
    assert found == [word for word in words.THINGS if word in set(found)]


@pytest.mark.parametrize("design", COUNTS)
def test_sprites_are_cut_out_tightly(design):
    for word, sprite in sprites.load_sprites(design).items():
        assert sprite.dtype == np.uint8 and sprite.shape[2] == 4, word
        assert max(sprite.shape[:2]) == 128, word
        alpha = sprite[..., 3]
        rows, columns = np.nonzero((alpha > 127).any(1))[0], np.nonzero((alpha > 127).any(0))[0]
        # The mask of the large drawing touches every edge; shrinking loses thin tips, of two pixels at most.
        assert rows[0] <= 2 and columns[0] <= 2, word
        assert rows[-1] >= sprite.shape[0] - 3 and columns[-1] >= sprite.shape[1] - 3, word
        # A thing, neither a speck nor a picture that fills a square.
        assert 0.1 < (alpha > 127).mean(), word
        # Edges are smooth, and only edges: half-transparent drawings would have vague masks.
        assert (alpha > 127).sum() > 0.7 * (alpha > 25).sum(), word


def small(sprite: np.ndarray) -> np.ndarray:
    """Returns a sprite on grey, 16x16, as floats."""
    picture = Image.new("RGBA", (128, 128), (128, 128, 128, 255))
    drawing = Image.fromarray(sprite)
    picture.alpha_composite(drawing, ((128 - drawing.width) // 2, (128 - drawing.height) // 2))
    return np.asarray(picture.convert("RGB").resize((16, 16), Image.Resampling.BOX), np.float64)


def test_designs_differ():
    """Two designs draw the same thing differently: no design is a copy, which would leak the one kept back."""
    for one, other in itertools.combinations(COUNTS, 2):
        left, right = sprites.load_sprites(one), sprites.load_sprites(other)
        shared = left.keys() & right.keys()
        differences = [np.abs(small(left[word]) - small(right[word])).mean() for word in sorted(shared)]
        assert np.median(differences) > 8, (one, other)


def test_straight_alpha_and_colours():
    """Twemoji's heart is one red, #DD2E44 in the SVG, also at its soft edge."""
    heart = sprites.load_sprites("twemoji")["heart"].astype(int)
    assert np.abs(heart[64, 64] - [0xDD, 0x2E, 0x44, 255]).max() <= 4
    edge = heart[(heart[..., 3] > 64) & (heart[..., 3] < 192)]
    assert len(edge) > 50
    # 56 colours, alpha included, cost the edge a few steps; premultiplied colours would be half as bright.
    assert abs(np.median(edge[:, 0]) - 0xDD) <= 12


def test_loading_is_cached_and_safe():
    first = sprites.load_sprites("twemoji")
    assert sprites.load_sprites("twemoji") is first
    with pytest.raises(ValueError, match="read-only"):
        first["cat"][0, 0] = 0
    with pytest.raises(TypeError, match="does not support item assignment"):
        first["cat"] = first["dog"]


def test_unknown_design():
    with pytest.raises(
        ValueError, match="no design is called 'twemojis'; choose from twemoji, fluent, openmoji, .*noto"
    ):
        sprites.load_sprites("twemojis")


def test_archives_are_small_and_reproducible():
    paths = sorted(FOLDER.glob("*.zip"))
    assert sum(path.stat().st_size for path in paths) < 3_500_000
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_every_archive_has_a_licence():
    licences = (FOLDER / "LICENSES.md").read_text("utf-8")
    for design, entry in SETS.items():
        name, _, version = entry.package.removeprefix("iconify-json-").rpartition("-")
        assert f"| `{design}.zip` |" in licences and f"| {name} {version} |" in licences, design
