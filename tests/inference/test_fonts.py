"""Labels in scripts that the default font lacks."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw

from fcclip_jax.inference import fonts
from fcclip_jax.text.vocabulary import Vocabulary
from tests.inference.fake_results import fake_result


def write_font(path, characters):
    """Writes a font in which each character is a filled square, as wide as the letters are high."""
    pen = TTGlyphPen(None)
    for at, point in enumerate([(0, 0), (0, 1000), (1000, 1000), (1000, 0)]):
        (pen.lineTo if at else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    glyphs = [".notdef", *(f"uni{ord(char):04X}" for char in characters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap({ord(char): name for char, name in zip(characters, glyphs[1:], strict=True)})
    font.setupGlyf(dict.fromkeys(glyphs, square))
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    font.setupOS2(sTypoAscender=1000, usWinAscent=1000)
    font.setupPost()
    font.save(path)
    return str(path)


@pytest.fixture
def installed(monkeypatch):
    """Sets the fonts of the system; none at first."""

    def install(*paths):
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(paths))
        for cached in (fonts._system_fonts, fonts._system_font, fonts.warn_of_missing):
            cached.cache_clear()

    install()
    yield install
    monkeypatch.undo()
    for cached in (fonts._system_fonts, fonts._system_font, fonts.warn_of_missing):
        cached.cache_clear()


def parts(label):
    return [(text, path.stem) for text, path in fonts._parts(label)]


def test_each_character_has_a_font_that_has_it(installed, tmp_path):
    installed(
        write_font(tmp_path / "KanjiBold.ttf", "猫犬 "),
        write_font(tmp_path / "Kanji.ttf", "猫犬 "),
        write_font(tmp_path / "LastResort.otf", "กา猫"),
        write_font(tmp_path / "Hangul.ttf", "소파"),
        str(tmp_path / "missing.ttf"),
    )
    assert parts("crème brûlée 0.50") == [("crème brûlée 0.50", "DejaVuSans")]
    assert parts("猫 犬 0.88") == [("猫 犬", "Kanji"), (" 0.88", "DejaVuSans")]
    assert parts("big 소파") == [("big ", "DejaVuSans"), ("소파", "Hangul")]
    assert parts("猫소") == [("猫", "Kanji"), ("소", "Hangul")]
    assert parts("กา") == [("ก", "DejaVuSans"), ("า", "DejaVuSans")]  # boxes: no font has them


def test_the_system_fonts_glyphs_are_drawn_at_their_place(installed, tmp_path):
    """The label is 20 pixels of the test font's squares, then the default font's digits."""
    installed(write_font(tmp_path / "Kanji.ttf", "猫"))
    runs = fonts.runs("猫 1", 20)
    picture = Image.new("L", (100, 60))
    fonts.draw(ImageDraw.Draw(picture), (50.0, 30.0), runs, "white")
    columns = np.flatnonzero((np.asarray(picture) > 200).sum(axis=0) >= 19)
    start = round(50 - fonts.width(runs) / 2)
    # Letters are placed at whole pixels, rounded either way.
    assert abs(columns[0] - start) <= 1 and 19 <= len(columns) <= 21
    assert np.asarray(picture)[:, columns[-1] + 3 :].max() > 200  # the digit


def test_words_without_a_font_are_named_once(installed, tmp_path, recwarn):
    vocabulary = Vocabulary.from_words(["cat", "sofa", "猫", "소파"])
    result = fake_result((120, 160), vocabulary)
    for task in ("panoptic", "semantic", "instances"):
        result.draw(task)
    (warning,) = recwarn
    assert str(warning.message).startswith("no font of this system has all letters of 猫, 소파, so labels show boxes")
    assert "fonts-noto-cjk" in str(warning.message)
    installed(write_font(tmp_path / "Both.ttf", "猫소파"))
    result.draw()
    assert len(recwarn) == 1


def test_scripts_of_the_default_font_need_no_other(installed, recwarn):
    fonts.warn_of_missing(("кот", "γάτα", "قط", "naïve", "cat\u200d"))
    assert not recwarn
