"""Colours and places in drawings of rectangles; their appearance must be judged by eye."""

import itertools
import math

import numpy as np
import pytest
from PIL import ImageDraw
from scipy import ndimage

from fcclip_jax.inference import visualize
from fcclip_jax.inference.results import Result
from fcclip_jax.inference.segments import Panoptic, Segment
from fcclip_jax.text.vocabulary import Vocabulary, VocabularyClass
from tests.inference.fake_results import WORDS, empty_result, fake_result, pack, rectangle

SHAPE = (240, 320)
SOFA, BACK, FRONT = (0, 0, 240, 240), (40, 30, 160, 120), (80, 60, 200, 180)


@pytest.fixture
def labels(monkeypatch):
    """Records the labels' boxes and words without drawing them, so that the fillings can be tested."""
    boxes, words = [], []
    monkeypatch.setattr(ImageDraw.ImageDraw, "rounded_rectangle", lambda self, box, *rest: boxes.append(box))
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, *rest, **more: words.append(text))
    return boxes, words


def tint(pixels, color):
    return np.round(0.5 * pixels.astype(float) + 0.5 * np.asarray(color))


def inner(box, margin=8):
    x0, y0, x1, y1 = box
    return slice(y0 + margin, y1 - margin), slice(x0 + margin, x1 - margin)


def test_panoptic_tints_each_segment_and_leaves_void_alone(labels):
    result = fake_result(SHAPE)
    drawn = np.asarray(result.draw("panoptic")).astype(float)
    sofa, cat = WORDS.classes[2].color, WORDS.classes[0].color
    # Rounding of the blend is OpenCV's: half a level either way.
    y, x = inner((0, 190, 240, 240))
    np.testing.assert_allclose(drawn[y, x], tint(result.image[y, x], sofa), atol=1)
    y, x = inner((40, 30, 160, 60))
    np.testing.assert_allclose(drawn[y, x], tint(result.image[y, x], cat), atol=1)
    y, x = inner((240, 0, 320, 240))
    np.testing.assert_array_equal(drawn[y, x], result.image[y, x])
    # The second cat is a shade of the first.
    y, x = inner(FRONT)
    added = drawn[y, x] - 0.5 * result.image[y, x]
    shade = np.median(added, axis=(0, 1)) * 2
    np.testing.assert_allclose(added, np.broadcast_to(shade / 2, added.shape), atol=1)
    assert np.abs(shade - cat).max() > 20


def test_a_line_parts_segments(labels):
    """On a black image only the lines are bright."""
    result = fake_result(SHAPE)
    drawn = np.asarray(Result(np.zeros_like(result.image), *list(vars(result).values())[1:]).draw("panoptic"))
    for column in (40, 159):  # the sides of the cat at the back
        beside = 10 if column == 40 else -10
        assert drawn[45, column].astype(int).sum() > drawn[45, column + beside].astype(int).sum() + 100


def test_semantic_tints_each_class(labels):
    result = fake_result(SHAPE)
    drawn = np.asarray(result.draw("semantic")).astype(float)
    for index in (0, 2):
        inside = result.semantic == index
        inside[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        expected = tint(result.image[inside], WORDS.classes[index].color)
        off = np.abs(drawn[inside] - expected).max(axis=1) > 1
        assert off.mean() < 0.03  # the lines around it
    assert sorted(labels[1]) == ["cat", "sofa"]


def test_instances_from_the_threshold_on_with_the_best_on_top(labels):
    result = fake_result(SHAPE)
    drawn = np.asarray(result.draw("instances", threshold=0.5))
    assert labels[1] == ["cat 0.88"]
    y, x = inner((40, 30, 80, 120))
    np.testing.assert_array_equal(drawn[y, x], result.image[y, x])
    np.testing.assert_array_equal(drawn[100, 80], WORDS.classes[0].color)  # its box

    labels[1].clear()
    drawn = np.asarray(result.draw("instances", threshold=0.25)).astype(float)
    assert sorted(labels[1]) == ["cat 0.25", "cat 0.88"]
    y, x = slice(70, 110), slice(90, 150)  # both cats
    behind = drawn[40:50, 90:150] * 2 - result.image[40:50, 90:150]
    behind = np.median(behind, axis=(0, 1))
    expected = tint(tint(result.image[y, x], behind), WORDS.classes[0].color)
    np.testing.assert_allclose(drawn[y, x], expected, atol=2)


@pytest.mark.parametrize("shape", [(64, 90), (150, 200), (480, 640), (1500, 2000)])
def test_labels_stand_in_their_segments_and_not_on_each_other(labels, shape):
    fake_result(shape).draw("panoptic")
    boxes, words = labels
    assert len(words) == len(set(words)) and set(words) <= {"sofa", "cat 0.50", "cat 0.88"}
    assert len(words) == 3 or shape[0] < 100
    height, width = shape
    for word, (x0, y0, x1, y1) in zip(words, boxes, strict=True):
        assert 0 <= x0 < x1 < width and 0 <= y0 < y1 < height
        id = ["sofa", "cat 0.50", "cat 0.88"].index(word) + 1
        assert fake_result(shape).panoptic.id_map[(y0 + y1) // 2, (x0 + x1) // 2] == id
        # Letters can be read, and grow with the picture.
        assert y1 - y0 + 1 >= max(14, 1.4 * 0.024 * np.sqrt(height * width))
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def test_labels_avoid_what_is_not_theirs(labels):
    """A ring, whose middle belongs to another segment."""
    id_map = rectangle((300, 400), (50, 40, 350, 260)).astype(np.int32)
    id_map[100:200, 150:250] = 2
    vocabulary = Vocabulary.from_words(["road", "sea"], stuff=["road", "sea"])
    result = fake_result((300, 400), vocabulary)
    segments = [
        result.panoptic.segments[0]._replace(id=id, class_index=id - 1, entry=vocabulary.classes[id - 1], box=box)
        for id, box in ((1, (50, 40, 350, 260)), (2, (150, 100, 250, 200)))
    ]
    visualize.draw_panoptic(result.image, vocabulary, Panoptic(id_map, segments))
    for word, (x0, y0, x1, y1) in zip(labels[1], labels[0], strict=True):
        assert (id_map[y0 : y1 + 1, x0 : x1 + 1] == ["road", "sea"].index(word) + 1).all()
    assert sorted(labels[1]) == ["road", "sea"]


def test_small_segments_go_without_a_label(labels):
    fake_result((30, 40)).draw("panoptic")
    assert labels[1] == ["sofa"]


def test_each_sizeable_region_of_a_class_is_named(labels):
    semantic = np.zeros((200, 300), np.int32)
    semantic[:, 100:200] = 2
    semantic[50, 30] = 2  # a speck
    Result(np.zeros((200, 300, 3), np.uint8), WORDS, None, semantic, None).draw("semantic")
    assert sorted(labels[1]) == ["cat", "cat", "sofa"]


@pytest.mark.parametrize("task", ["panoptic", "instances"])
def test_nothing_found_draws_the_plain_image(task):
    result = empty_result()
    np.testing.assert_array_equal(np.asarray(result.draw(task)), result.image)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (7, 9)])
@pytest.mark.parametrize("task", ["panoptic", "semantic", "instances"])
def test_tiny_images(shape, task):
    result = fake_result((80, 80))
    height, width = shape
    one = np.ones(shape, np.int32)
    segment = result.panoptic.segments[0]._replace(box=(0, 0, width, height), area=height * width)
    panoptic = result.panoptic._replace(id_map=one, segments=[segment])
    drawn = Result(np.zeros((*shape, 3), np.uint8), WORDS, panoptic, one, []).draw(task)
    assert drawn.size == (width, height)


def test_the_image_itself_is_left_alone():
    result = fake_result()
    before = result.image.copy()
    result.image.flags.writeable = False
    for task in result.tasks:
        result.draw(task)
    np.testing.assert_array_equal(result.image, before)


def test_an_unknown_task_is_an_error():
    with pytest.raises(ValueError, match="no task 'boxes'.*panoptic, semantic or instances"):
        fake_result().draw("boxes")


def test_labels_are_written_in_ink_that_shows():
    drawn = np.asarray(fake_result((480, 640)).draw("panoptic"))
    colors, counts = np.unique(drawn.reshape(-1, 3), axis=0, return_counts=True)
    flat = dict(zip(map(tuple, colors.tolist()), counts.tolist(), strict=True))
    sofa = WORDS.classes[2].color
    assert flat[sofa] > 300, "the label's ground has the class's colour"
    assert flat.get((0, 0, 0), 0) > 20 or flat.get((255, 255, 255), 0) > 20


def test_shades_of_a_class_differ():
    shades = visualize._Shades(WORDS)
    colors = [shades.next(0) for _ in range(8)]
    assert colors[0] == WORDS.classes[0].color
    distances = [np.abs(np.subtract(a, b)).sum() for a, b in itertools.combinations(colors, 2)]
    assert min(distances) > 10
    assert shades.next(1) == WORDS.classes[1].color


def grid(rows, columns, shape=(240, 320)):
    """A map of touching rectangles, with ids from 1."""
    height, width = shape
    ids = (np.arange(height)[:, None] * rows // height) * columns + np.arange(width) * columns // width + 1
    return ids.astype(np.int32)


def colors_drawn(monkeypatch, draw) -> list[tuple[int, int, int]]:
    drawn = []
    painted = visualize._painted
    monkeypatch.setattr(
        visualize,
        "_painted",
        lambda image, regions: drawn.extend(region.color for region in regions) or painted(image, regions),
    )
    draw()
    return drawn


@pytest.mark.parametrize(
    ("task", "palette", "rows", "columns"),
    [
        ("panoptic", [(200, 60, 60)], 6, 10),  # many of one class; a class has one colour in a semantic map
        ("panoptic", [(0, 0, 0)], 6, 10),
        ("panoptic", [(255, 255, 255)], 6, 10),
        ("panoptic", [(120, 120, 120), (121, 122, 119)], 1, 2),  # nearly equal classes
        ("semantic", [(120, 120, 120), (121, 122, 119)], 1, 2),
        ("panoptic", [(200, 60, 60), (200, 64, 60), (198, 60, 60), (200, 60, 66)], 2, 2),
        ("semantic", [(200, 60, 60), (200, 64, 60), (198, 60, 60), (200, 60, 66)], 2, 2),
    ],
)
def test_segments_that_touch_have_different_colors(labels, monkeypatch, task, palette, rows, columns):
    vocabulary = Vocabulary(
        "made", tuple(VocabularyClass((f"class {i}",), True, color, i + 1) for i, color in enumerate(palette))
    )
    ids = grid(rows, columns)
    image = np.zeros((*ids.shape, 3), np.uint8)
    if task == "semantic":
        colors = colors_drawn(monkeypatch, lambda: visualize.draw_semantic(image, vocabulary, ids - 1))
    else:
        number = rows * columns
        entries = [(n, vocabulary.classes[(n - 1) % len(palette)]) for n in range(1, number + 1)]
        boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(ids)]
        segments = [
            Segment(n, entry.id - 1, entry, 0.5, 1, box) for (n, entry), box in zip(entries, boxes, strict=True)
        ]
        colors = colors_drawn(monkeypatch, lambda: visualize.draw_panoptic(image, vocabulary, Panoptic(ids, segments)))
    assert colors[0] == palette[0], "the first keeps its class's colour"
    for one, other in ((ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])):
        for a, b in np.unique(np.stack([one[one != other], other[one != other]], 1), axis=0):
            # A shade's whole range is four such distances or more, so that the neighbours leave one.
            assert math.dist(colors[a - 1], colors[b - 1]) >= visualize.LEAST_DISTANCE


def crowd(number):
    """Discs in a row, the best first, each half on the next."""
    shape = (200, 20 * number + 40)
    y, x = np.mgrid[: shape[0], : shape[1]]
    found = []
    for n in range(number):
        box = (20 * n, 80, 20 * n + 40, 120)
        found.append(pack(0, 1 - n / 200, box, (x - 20 * n - 20) ** 2 + (y - 100) ** 2 < 20**2, WORDS))
    return np.zeros((*shape, 3), np.uint8), found


def test_a_crowd_of_instances_stays_readable(labels):
    """Each pixel has the colour of the best one alone, boxes are thin, and few labels, of the best, cover the picture."""
    image, found = crowd(100)
    drawn = np.asarray(visualize.draw_instances(image, WORDS, found, 0.0)).astype(int)
    boxes, words = labels
    covered = sum((x1 - x0 + 1) * (y1 - y0 + 1) for x0, y0, x1, y1 in boxes)
    assert 0 < covered <= 0.12 * image.shape[0] * image.shape[1]
    assert words[0] == "cat 1.00" and 1 < len(words) < 100
    # Where the second disc lies under the first, there is only the first's colour.
    color = np.asarray(WORDS.classes[0].color)
    np.testing.assert_allclose(drawn[100, 26:38], np.tile(np.round(color / 2), (12, 1)), atol=1)
    few, some = crowd(visualize.CROWD)
    thick = np.asarray(visualize.draw_instances(few, WORDS, some, 0.0)).any(axis=2)[:, 2]
    thin = drawn.any(axis=2)[:, 2]
    assert thin[:81].sum() < thick[:81].sum()
