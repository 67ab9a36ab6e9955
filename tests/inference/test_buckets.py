"""Shapes by hand, and the cost of padding on photographs' usual sizes."""

import itertools
from collections import Counter

import numpy as np
import pytest

from fcclip_jax.data.images import resized_shape
from fcclip_jax.inference.buckets import (
    Shapes,
    canvas,
    check_buckets,
    choose_bucket,
    image_buckets,
    parse_buckets,
    share_programs,
)
from tests.inference.photo_sizes import PHOTO_SIZES

OFFICIAL = image_buckets(800, 1333)


def test_the_official_sides():
    assert OFFICIAL == ((800, 1088), (1088, 800), (800, 1216), (800, 1344), (1344, 800))


@pytest.mark.parametrize("sides", [(800, 1333), (1024, 2560), (640, 640), (100, 100), (31, 500), (512, 700)])
def test_every_aspect_has_a_bucket(sides):
    buckets = image_buckets(*sides)
    assert len(buckets) <= 8
    for height, width in itertools.product((1, 50, 333, 480, 640, 1000, 4000), repeat=2):
        resized = resized_shape(height, width, *sides)
        chosen = choose_bucket(resized, buckets)
        assert chosen[0] >= resized[0] and chosen[1] >= resized[1]


def test_padding_costs_a_few_percent():
    """Compares the number of computed pixels with that of each image's own multiple of 32, on usual sizes."""
    ratios = []
    for size in PHOTO_SIZES:
        resized = resized_shape(*size, 800, 1333)
        height, width = choose_bucket(resized, OFFICIAL)
        own = [-(-side // 32) * 32 for side in resized]
        ratios.append(height * width / (own[0] * own[1]))
    assert 1 <= sum(ratios) / len(ratios) < 1.12


def test_the_smallest_that_fits_is_chosen():
    assert choose_bucket((800, 1088), OFFICIAL) == (800, 1088)
    assert choose_bucket((800, 1089), OFFICIAL) == (800, 1216)
    assert choose_bucket((801, 600), OFFICIAL) == (1088, 800)
    with pytest.raises(ValueError, match="an image of 900x900 fits none of the buckets 800x1088, 1088x800"):
        choose_bucket((900, 900), OFFICIAL)


def test_parsing():
    assert parse_buckets("800x1088, 64x32") == ((800, 1088), (64, 32))
    with pytest.raises(ValueError, match="bucket '800' is not HEIGHTxWIDTH"):
        parse_buckets("800,32x32")
    with pytest.raises(ValueError, match="bucket 810x0 has a side that is not a multiple of 32; try 832x32"):
        check_buckets([(810, 0)])


LANDSCAPE, LONG, PORTRAIT = (96, 128), (96, 160), (160, 96)


def test_programs_are_shared_where_they_are_too_many():
    counts = {
        Shapes(LANDSCAPE, (640, 640)): 100,
        Shapes(LONG, (640, 640)): 50,
        Shapes(LONG, (1344, 1344)): 1,
        Shapes(PORTRAIT, (640, 640)): 30,
        Shapes(PORTRAIT, (1344, 1344)): 2,
    }
    buckets = (LANDSCAPE, LONG, PORTRAIT)
    assert share_programs(counts, buckets, 5) == {shapes: shapes for shapes in counts}
    # 100 longer images are 0.3 million pixels more; a tenth of 30 larger canvases would be 4.2 million.
    shared = share_programs(counts, buckets, 4)
    assert shared == {**{shapes: shapes for shapes in counts}, Shapes(LANDSCAPE, (640, 640)): Shapes(LONG, (640, 640))}
    # Landscape and portrait images have no common bucket.
    last = share_programs(counts, buckets, 1)
    assert {key: value for key, value in last.items() if key.bucket != PORTRAIT} == dict.fromkeys(
        [key for key in counts if key.bucket != PORTRAIT], Shapes(LONG, (1344, 1344))
    )
    assert set(last.values()) == {Shapes(LONG, (1344, 1344)), Shapes(PORTRAIT, (1344, 1344))}


def test_shared_programs_hold_their_images():
    rng = np.random.default_rng(0)
    buckets = image_buckets(800, 1333)
    for limit in (2, 4, 6):
        counts = Counter(
            Shapes(buckets[rng.integers(len(buckets))], canvas((int(rng.integers(1, 5000)), 1))) for _ in range(60)
        )
        shared = share_programs(counts, buckets, limit)
        assert shared.keys() == counts.keys() and len(set(shared.values())) <= limit
        for own, other in shared.items():
            sides = zip((*own.bucket, *own.canvas), (*other.bucket, *other.canvas), strict=True)
            assert other.bucket in buckets and all(mine <= its for mine, its in sides)


def test_canvases():
    assert [canvas((h, 10))[0] for h in (1, 640, 641, 4096, 4097, 8193)] == [640, 640, 1344, 4096, 8192, 12288]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 8200), (768, 12288)),
        ((8200, 300), (12288, 768)),
        ((768, 12288), (768, 12288)),
        ((769, 12288), (3072, 12288)),
        ((3000, 4000), (4096, 4096)),
        ((1024, 4000), (1024, 4096)),
        ((10, 2000), (2048, 2048)),  # small enough to share the square's program
    ],
)
def test_strips_have_narrow_canvases(size, expected):
    assert canvas(size) == expected


def test_photographs_share_square_canvases():
    """As many programs as there are longer sides: 3:4, 2:3, 9:16 and panoramas up to 1:4, upright and not."""
    sizes = [(h, w) for w in (4000, 4032, 4096) for h in (w, w * 3 // 4, w * 2 // 3, w * 9 // 16, w // 3)]
    assert {canvas(size) for size in sizes} == {canvas(size[::-1]) for size in sizes} == {(4096, 4096)}
