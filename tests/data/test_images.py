"""Reading and resizing, by hand and against the official sizes."""

import functools
import http.server
import io
import json
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from etils import epath
from PIL import ExifTags, Image

from fcclip_jax.data.decoding import decode_image
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


def test_16_bit_grey_is_turned_too(tmp_path):
    image = Image.fromarray(np.array([[0, 1000], [2000, 4000], [3000, 500]], np.uint16))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(tmp_path / "deep.png", exif=exif)
    grey = np.round(np.rot90([[0, 1000], [2000, 4000], [3000, 500]], -1) * 255 / 4000)
    np.testing.assert_array_equal(load_image(tmp_path / "deep.png")[..., 1], grey)
    assert upright_shape(epath.Path(tmp_path / "deep.png")) == (2, 3)


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_exif_data_count_as_none(tmp_path, suffix):
    """The resolution has the wrong type, so that Pillow fails while it rewrites the data without the orientation."""
    path = epath.Path(tmp_path / f"a.{suffix}")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\1\0\0\0\1\0\0\0\x1a\x01\x05\0\1\0\0\0\xff\xff\xff\xff"
    for block in (exif, b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\1\0\1\0\0", b"Exif\0\0MM", b"?"):
        Image.fromarray(PIXELS).save(path, exif=block, dpi=(72, 72), quality=100, subsampling=0)
        # A JPEG's pixels are rounded.
        np.testing.assert_allclose(load_image(path).astype(int), PIXELS, atol=0 if suffix == "png" else 8)
        np.testing.assert_array_equal(decode_image(path.read_bytes()), load_image(path))
        assert upright_shape(path) == (5, 7)


@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
def test_long_texts_of_a_png(tmp_path, place):
    """Pillow refuses texts above 1 MiB and colour profiles that unpack to more."""
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    data = path.read_bytes()
    text = b"zTXtComment\0\0" + zlib.compress(bytes(3 * 2**20))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    middle = data.index(b"IDAT") - 4 if place == "before the pixels" else data.index(b"IEND") - 4
    path.write_bytes(data[:middle] + chunk + data[middle:])
    np.testing.assert_array_equal(load_image(path), PIXELS)
    np.testing.assert_array_equal(decode_image(path.read_bytes()), PIXELS)
    assert upright_shape(epath.Path(path)) == (5, 7)


def test_every_way_to_give_an_image(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with path.open("rb") as file, Image.open(path) as lazy:
        file.read(3)  # it is read from its beginning
        given = [path, str(path), "~/a.png", path.read_bytes(), bytearray(path.read_bytes()), file, lazy]
        given += [io.BytesIO(path.read_bytes())]
        for image in given:
            found = load_image(image)
            np.testing.assert_array_equal(found, PIXELS)
            found[0] = 0  # the caller's own
    with path.open("r", encoding="latin-1") as text, pytest.raises(ValueError, match="open as text; open it for"):
        load_image(text)
    with pytest.raises(ValueError, match="cannot read the bytes: it is not an image in a known format"):
        load_image(b"no image")


def test_an_address(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        np.testing.assert_array_equal(load_image(f"{address}/a.png"), PIXELS)
        with pytest.raises(OSError, match=r"cannot read .*/none.png: the server answers 404"):
            load_image(f"{address}/none.png")
        server.shutdown()
    with pytest.raises(OSError, match=r"cannot read http://127.0.0.1:\d+/a.png: .*refused"):
        load_image(f"{address}/a.png")


def test_one_pil_image_in_many_threads(tmp_path):
    """A PIL image reads its file when its pixels are first asked for."""
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            with Image.open(tmp_path / "a.png") as shared:
                for found in pool.map(load_image, [shared] * 8):
                    np.testing.assert_array_equal(found, pixels)


def test_one_open_file_in_many_threads():
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")

    class Slow(io.BytesIO):
        """Lets other threads run between the parts of a reading."""

        def seek(self, *place):
            time.sleep(0.001)
            return super().seek(*place)

        def read(self, *size):
            time.sleep(0.001)
            return super().read(*size)

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(load_image, [Slow(file.getvalue())] * 16):
            np.testing.assert_array_equal(found, pixels)


def test_transparency_of_a_palette_is_no_warning(tmp_path, recwarn):
    palette = Image.fromarray(PIXELS).convert("P")
    palette.save(tmp_path / "a.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.asarray(palette.convert("RGB")))
    assert not recwarn.list


def test_a_pil_image_that_proves_damaged(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) - 40])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(ValueError, match="cannot read .*a.png: "):
        load_image(image)


def test_more_pixels_than_pillow_reads(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 17)
    with pytest.raises(ValueError, match="more than 0 megapixels, .* allow more with --max-megapixels N"):
        load_image(tmp_path / "a.png")


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
    with pytest.raises(ValueError, match="cannot read ftp://host/a.png: give a path, or an address"):
        load_image("ftp://host/a.png")
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
