"""Tests the jitter by hand, against Pillow, and against the official mapper's output for real images."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcclip_jax.conventions import NO_SEGMENT
from fcclip_jax.data import decoding, transforms
from fcclip_jax.data.transforms import Jitter


def test_every_official_case(shared):
    golden = json.loads((shared / "golden/extra/lsj.json").read_text())
    arrays = np.load(shared / "golden/extra/lsj.npz", allow_pickle=False)
    shrunk = grown = 0
    for i, case in enumerate(golden["cases"]):
        jitter, crop = Jitter(case["flip"], case["scale"], case["crop_u"]), case["target"]
        image, ids = arrays[f"in_{case['input']}_image"], arrays[f"in_{case['input']}_pan_id"]
        resize, cut = case["transforms"][1:3]
        placement = transforms.place(image.shape[:2], jitter, crop)
        assert placement == ((resize["new_h"], resize["new_w"]), (cut["y0"], cut["x0"]))

        difference = np.abs(transforms.jitter_image(image, jitter, crop).astype(int) - arrays[f"case{i}_image"])
        # OpenCV's linear filter has 11-bit weights and rounds once, Pillow rounds after each axis.
        grows = resize["new_h"] >= resize["h"]
        assert difference.max() <= (1 if grows else 0), case["name"]
        grown, shrunk = grown + grows, shrunk + (not grows)

        info = golden["inputs"][case["input"]]["segments_info"]
        rows = np.array([(entry["id"], entry["category_id"], entry["iscrowd"]) for entry in info])
        segments = decoding.segments_of(ids, rows)
        slots = transforms.jitter_map(segments.segment_map, jitter, crop)
        # Emptied segments stay, crowds do not.
        assert segments.categories.tolist() == [target["category_id"] for target in case["targets"]]
        areas = np.bincount(slots.ravel(), minlength=256)[: len(case["targets"])]
        assert areas.tolist() == [target["mask_area"] for target in case["targets"]]
        expected = np.full_like(slots, NO_SEGMENT)
        for slot, target in enumerate(case["targets"]):
            expected[arrays[f"case{i}_pan_id"] == target["segment_id"]] = slot
        np.testing.assert_array_equal(slots, expected)
    assert shrunk >= 2 and grown >= 2


def test_draws_come_in_the_official_order():
    class Recorded(np.random.Generator):
        calls, values = [], iter([0.5, 1.25, 0.75])

        def uniform(self, *limits):
            self.calls.append(limits)
            return next(self.values)

    rng = Recorded(np.random.PCG64())
    assert transforms.draw_jitter(rng) == Jitter(flip=False, scale=1.25, offset=0.75)  # 0.5 does not flip
    assert rng.calls == [(), (0.1, 2.0), ()]
    narrow = Recorded(np.random.PCG64())
    narrow.calls, narrow.values = [], iter([0.5, 1.25, 0.75])
    transforms.draw_jitter(narrow, (0.75, 1.35))
    assert narrow.calls == [(), (0.75, 1.35), ()]
    draws = [transforms.draw_jitter(np.random.default_rng(seed)) for seed in range(200)]
    assert 70 < sum(draw.flip for draw in draws) < 130
    assert all(0.1 <= draw.scale < 2 and 0 <= draw.offset < 1 for draw in draws)


def test_sizes_and_offsets_round_half_to_even():
    # 480x640 into 256: 190.5 rows round to 190. The crop leaves out 85 columns: 42.5 rounds to 42.
    assert transforms.place((480, 640), Jitter(False, 0.9921875, 0.9), 256) == ((190, 254), (0, 0))
    assert transforms.place((480, 640), Jitter(False, 1.33203125, 0.5), 256) == ((256, 341), (0, 42))
    # 0.2 rows: one stays.
    assert transforms.place((2, 1000), Jitter(False, 0.1, 0.5), 1024).shape == (1, 102)


def test_crop_and_padding_by_hand():
    """A 2x4 image doubled to 4x8: the 6x6 crop has all rows and columns 1 to 6, then two rows of padding."""
    image = np.repeat(np.uint8([[0, 40, 80, 120], [0, 40, 80, 120]])[..., None], 3, axis=-1)
    slots = np.uint8([[0, 1, 2, 3], [4, 5, 6, 7]])
    jitter = Jitter(flip=False, scale=4 / 3, offset=0.5)
    # Pixels at a quarter and three quarters between their neighbours.
    row = [10, 30, 50, 70, 90, 110]
    expected = np.uint8([row] * 4 + [[128] * 6] * 2)
    np.testing.assert_array_equal(transforms.jitter_image(image, jitter, 6), np.repeat(expected[..., None], 3, -1))
    top, bottom, none = [0, 1, 1, 2, 2, 3], [4, 5, 5, 6, 6, 7], [NO_SEGMENT] * 6
    np.testing.assert_array_equal(
        transforms.jitter_map(slots, jitter, 6), np.uint8([top, top, bottom, bottom, none, none])
    )
    # Flipped first, then cropped from the same place.
    flipped = jitter._replace(flip=True)
    np.testing.assert_array_equal(transforms.jitter_image(image, flipped, 6)[0, :, 0], row[::-1])
    np.testing.assert_array_equal(transforms.jitter_map(slots, flipped, 6)[0], [3, 2, 2, 1, 1, 0])
    # Halved to 1x2; the rest is padding. Anti-aliased: 0, 40 and 80 weigh 3 : 3 : 1, which makes 28.6.
    halved = transforms.jitter_image(image, Jitter(False, 0.5, 0.9), 4)
    assert halved[0, :2, 0].tolist() == [29, 91] and (halved[1:] == 128).all() and (halved[:, 2:] == 128).all()
    assert transforms.jitter_map(slots, Jitter(False, 0.5, 0.9), 4)[0].tolist() == [5, 7, NO_SEGMENT, NO_SEGMENT]


@pytest.mark.parametrize("shape", [(37, 53), (64, 31)])
def test_flipping_first_is_flipping_the_result(shape):
    """Without a crop: resizing is symmetric, except for the rounding of ties."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    for scale in (0.4, 1.0):
        plain, flipped = (transforms.jitter_image(image, Jitter(flip, scale, 0.3), 64) for flip in (False, True))
        width = transforms.place(shape, Jitter(False, scale, 0.3), 64).shape[1]
        assert np.abs(plain[:, :width].astype(int) - flipped[:, :width][:, ::-1]).max() <= 1


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    flip=st.booleans(),
    scale=st.floats(0.1, 2.0),
    offset=st.floats(0, 1, exclude_max=True),
)
def test_the_same_as_pillow(shape, flip, scale, offset):
    """Flips, resizes, crops and pads with Pillow and NumPy alone."""
    crop, rng = 48, np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    slots = rng.integers(0, 9, shape).astype(np.uint8)
    jitter = Jitter(flip, scale, offset)
    (height, width), (top, left) = transforms.place(shape, jitter, crop)

    def official(pixels, resample, fill):
        pixels = np.ascontiguousarray(pixels[:, ::-1] if flip else pixels)
        resized = np.asarray(Image.fromarray(pixels).resize((width, height), resample))
        seen = resized[top : top + crop, left : left + crop]
        padding = [(0, crop - seen.shape[0]), (0, crop - seen.shape[1])] + [(0, 0)] * (pixels.ndim - 2)
        return np.pad(seen, padding, constant_values=fill)

    np.testing.assert_array_equal(transforms.jitter_map(slots, jitter, crop), official(slots, 0, NO_SEGMENT))
    expected = official(image, Image.Resampling.BILINEAR, 128)
    difference = np.abs(transforms.jitter_image(image, jitter, crop).astype(int) - expected)
    assert difference.max() <= (1 if height >= shape[0] and width >= shape[1] else 0)
