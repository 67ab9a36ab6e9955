"""Kinds of images that not every Pillow reads, and what a message says where one is not read."""

import io
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image, features

from fcclip_jax.conventions import IMAGE_SUFFIXES
from fcclip_jax.data import decoding, images

PIXELS = np.full((24, 32, 3), (200, 40, 90), np.uint8)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
"""A header alone."""


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".heic", ".heif"}))
def test_every_kind_is_read(tmp_path, suffix):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"a{suffix}"
    Image.fromarray(PIXELS).save(path)
    found = images.load_image(path)
    # Of one colour: WebP, the lossiest, is off by up to 5.
    np.testing.assert_allclose(found.astype(int), PIXELS, atol=8)
    np.testing.assert_array_equal(decoding.decode_image(path.read_bytes()), found)
    assert images.upright_shape(epath.Path(path)) == (24, 32)


def test_heic_without_its_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "IMG_1.jpg"  # its content counts, not its suffix
    path.write_bytes(HEIC)
    for read in (images.load_image, lambda path: images.upright_shape(epath.Path(path))):
        with pytest.raises(
            ValueError, match="cannot read .*IMG_1.jpg: it is a HEIC image, .*; pip install pillow-heif$"
        ):
            read(path)
    with pytest.raises(ValueError, match="the image cannot be read: it is a HEIC image"):
        decoding.decode_image(HEIC)


def test_heic():
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(PIXELS)).save(buffer, quality=90)
    # Lossy, but of one colour.
    np.testing.assert_allclose(images.load_image(buffer.getvalue()).astype(int), PIXELS, atol=8)
    with pytest.raises(ValueError, match="cannot read the bytes: "):
        images.load_image(HEIC)


def test_avif_without_its_reader(monkeypatch):
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "AVIF"])
    monkeypatch.setattr(features, "check", lambda name: False)
    data = b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf" + bytes(100)
    with pytest.raises(
        ValueError, match="it is an AVIF image, which this Pillow cannot read; pip install --upgrade pillow"
    ):
        images.load_image(data)


def test_a_film_is_not_an_image():
    with pytest.raises(ValueError, match="cannot read the bytes: it is not an image in a known format"):
        images.load_image(b"\0\0\0\x18ftypisom\0\0\0\0mp42isom" + bytes(100))
