"""Reading and resizing, by hand and against the official sizes."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import ExifTags, Image

from fcclip_jax.data.images import load_image, pad, resize, resized_shape, upright_shape


def test_sizes_and_pixels_of_detectron2(shared):
    cases = json.loads((shared / "golden/extra/resize_test.json").read_text())
    for case in cases["sizes"]:
        for sides in ("800_1333", "1024_2560", "640_2560"):
            # Where the official size is 0, which Pillow refuses, ours is 1.
            expected = tuple(max(side, 1) for side in case[sides])
            assert resized_shape(case["h"], case["w"], *map(int, sides.split("_"))) == expected
    arrays = np.load(shared / "golden/extra/resize_test.npz", allow_pickle=False)
    for i, case in enumerate(cases["pixels"]):
        image = arrays[f"px{i}_in"]
        shape = resized_shape(*image.shape[:2], case["short"], case["max"])
        np.testing.assert_array_equal(resize(image, shape), arrays[f"px{i}_out"])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((500, 1000), (667, 1333)),
        ((1, 5000), (1, 1333)),  # a height of 0.27 pixels
    ],
)
def test_sizes(size, expected):
    assert resized_shape(*size, 800, 1333) == expected


def test_upright_rgb(tmp_path):
    """Reads a photograph that its EXIF tag turns, a palette, grey with alpha, and 16 bits."""
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = 6  # turn 90 degrees clockwise to see it upright
    image.save(tmp_path / "side.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "side.png"), np.rot90(pixels, -1))
    assert upright_shape(epath.Path(tmp_path / "side.png")) == (3, 2)
    image.save(tmp_path / "upright.png")
    assert upright_shape(epath.Path(tmp_path / "upright.png")) == (2, 3)
    np.testing.assert_array_equal(load_image(image.convert("RGB")), pixels)
    grey = np.array([[0, 128], [255, 7]], np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(load_image(Image.fromarray(grey).convert("LA")), expected)
    np.testing.assert_array_equal(load_image(Image.fromarray(grey).convert("P")), expected)
    np.testing.assert_array_equal(load_image(Image.fromarray(grey.astype(np.uint16) * 257)), expected)


def test_what_is_not_an_image(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    for name, message in [
        ("text.jpg", "text.jpg: it is not an image in a known format"),
        ("half.jpg", "half.jpg: .*truncated"),
        (".", "is a folder, not an image"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_image(tmp_path / name)
    with pytest.raises(ValueError, match="cannot read .*text.jpg: it is not an image in a known format"):
        upright_shape(epath.Path(tmp_path / "text.jpg"))
    with pytest.raises(FileNotFoundError, match="the image .*absent.png does not exist"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="the image is empty: 0 pixels wide and 5 high"):
        load_image(Image.new("RGB", (0, 5)))
    with pytest.raises(ValueError, match="infinite or NaN pixels"):
        load_image(Image.fromarray(np.full((2, 2), np.nan, np.float32)))
    with pytest.raises(ValueError, match=r"expected an RGB image as uint8 \[H, W, 3\], got float32 \[2, 2, 3\]"):
        load_image(np.zeros((2, 2, 3), np.float32))


def test_resize_and_pad():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert resize(image, (40, 60)) is image
    # Halving with Pillow's anti-aliased triangle of four taps: 1/8, 3/8, 3/8, 1/8 away from the border.
    taps = np.array([1, 3, 3, 1]) / 8
    expected = np.einsum("i,j,ijc->c", taps, taps, image[9:13, 19:23].astype(float))
    np.testing.assert_allclose(resize(image, (20, 30))[5, 10], expected, atol=1)  # Pillow rounds after each axis
    padded = pad(image, (64, 96))
    assert padded.shape == (64, 96, 3)
    np.testing.assert_array_equal(padded[:40, :60], image)
    assert not padded[40:].any() and not padded[:, 60:].any()
