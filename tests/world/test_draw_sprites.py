"""Drawing the sprites: names, exceptions, cropping and errors, on small packages and a renderer of our own."""

import io
import json
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.world import draw_sprites
from fcclip_jax.world.draw_sprites import Drawings, draw, make_sprite, pack
from fcclip_jax.world.emoji_sets import EmojiSet


@pytest.fixture
def package(tmp_path):
    """Returns a function that writes a package; its drawings are texts, which `draw` hands to the renderer."""

    def write(name: str, drawings: dict, chars: dict | list, aliases: dict) -> Drawings:
        folder = tmp_path / name / "package"
        folder.mkdir(parents=True)
        icons = {name: {"body": body} for name, body in drawings.items()}
        record = {"icons": icons, "aliases": aliases, "width": 36, "height": 24}
        (folder / "icons.json").write_text(json.dumps(record))
        (folder / "chars.json").write_text(json.dumps(chars))
        return Drawings(tmp_path / name)

    return write


@pytest.fixture
def sets(package, monkeypatch) -> dict[str, Drawings]:
    """Three words in two sets: Twemoji with code points, and another that knows names only."""
    codes = {"t-rex": "1f996", "heart": "2764", "anchor": "2693"}
    monkeypatch.setattr(draw_sprites, "CODE_POINTS", codes)
    monkeypatch.setattr(
        draw_sprites,
        "SETS",
        {
            "twemoji": EmojiSet("twemoji-1"),
            "other": EmojiSet("other-2", complete=False, overrides={"heart": "love", "anchor": None}),
        },
    )
    chars = {"1f996": "t-rex", "2764-fe0f": "red-heart", "2693": "anchor"}
    return {
        "twemoji": package(
            "twemoji-1", {"t-rex": "R", "love": "H", "anchor": "A"}, chars, {"red-heart": {"parent": "love"}}
        ),
        "other": package("other-2", {"trex": "r", "love": "h", "red-heart": "wrong", "anchor": "a"}, [], {}),
    }


def test_names_aliases_and_exceptions(sets):
    drawn = []

    def render(svg: str) -> bytes:
        assert 'viewBox="0 0 36 24"' in svg
        drawn.append(svg.removesuffix("</svg>")[-1])
        png = io.BytesIO()
        Image.new("RGBA", (4, 4), (1, 2, 3, 255)).save(png, "PNG")
        return png.getvalue()

    assert list(draw("twemoji", sets, render)) == ["t-rex", "heart", "anchor"] and drawn == ["R", "H", "A"]
    drawn.clear()
    assert list(draw("other", sets, render)) == ["t-rex", "heart"] and drawn == ["r", "h"]


def test_a_complete_set_must_have_every_word(sets, monkeypatch):
    monkeypatch.setitem(draw_sprites.SETS, "twemoji", EmojiSet("twemoji-1", overrides={"heart": "hearts"}))
    with pytest.raises(ValueError, match="twemoji-1 has no drawing of 'heart', code point 2764"):
        draw("twemoji", sets, lambda svg: make_png(np.full((2, 2, 4), 255)))


def make_png(pixels: np.ndarray) -> bytes:
    png = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(png, "PNG")
    return png.getvalue()


def test_a_sprite_is_cropped_to_its_mask_and_scaled():
    drawing = np.zeros((512, 512, 4))
    drawing[100:356, 50:178] = [200, 100, 50, 255]
    drawing[20:100, 50:178] = [0, 0, 0, 100]  # A faint shadow is no part of the mask.
    sprite = np.asarray(make_sprite(make_png(drawing)))
    assert sprite.shape == (128, 64, 4)
    assert (sprite == [200, 100, 50, 255]).all()


def test_archives_are_the_same_every_time():
    sprites = {"cat": Image.new("RGBA", (128, 60), (200, 100, 50, 255)), "polar bear": Image.new("RGBA", (9, 128))}
    content = pack(sprites)
    assert pack(sprites) == content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["cat.webp", "polar bear.webp"]
        picture = Image.open(io.BytesIO(archive.read("cat.webp")))
        assert picture.size == (128, 60) and picture.convert("RGBA").getpixel((5, 5)) == (200, 100, 50, 255)


def test_without_resvg(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert draw_sprites.main(["--sets", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: drawing sprites needs resvg: pip install resvg-py==0.5.0\n"


def test_without_the_sets(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(draw_sprites, "renderer", lambda: None)
    assert draw_sprites.main(["--sets", str(tmp_path)]) == 2
    assert "iconify-json-twemoji-1.2.5/package/icons.json: No such file or directory" in capsys.readouterr().err
