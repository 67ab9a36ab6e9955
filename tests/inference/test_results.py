"""Tests results that are made by hand, and the arguments that they refuse."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.inference.postprocess import Instances, Postprocessed, Segments
from fcclip_jax.inference.results import make_result, truth_result
from fcclip_jax.metrics.panoptic import Truth
from tests.inference.fake_results import WORDS, fake_result

CAT, REMOTE, SOFA = range(3)


def padded_output() -> tuple[Postprocessed, np.ndarray]:
    """Returns one image of 2 x 3 in a canvas of 8 x 8, with a cat next to a sofa, and the cat's mask."""
    id_map = np.zeros((8, 8), np.int32)
    id_map[:2, 0], id_map[:2, 1:3] = 2, 1
    cat = id_map[:2, :3] == 2
    counts, blank = np.array([4, 2, 0], np.int32), np.zeros(3, np.int32)
    segments = Segments(
        np.int32(2),
        np.array([SOFA, CAT, 0], np.int32),
        np.array([False, True, False]),
        np.float32([0.5, 0.75, 0]),
        counts,
    )
    bits = np.zeros((3, 8, 1), np.uint8)
    bits[2, 0] = 0b11  # the first instance's mask is in the last row: its first column, both rows
    instances = Instances(
        np.int32(2), np.array([CAT, CAT, 0], np.int32), np.float32([0.75, 0.25, 0]), blank, np.array([2, 0, 0], np.int32),
        np.array([[0, 0, 1, 2], [0, 0, 0, 0], [0, 0, 0, 0]], np.int32), np.array([2, 0, 1], np.int32),
    )  # fmt: skip
    return Postprocessed(id_map, segments, id_map, instances, bits), cat


def test_a_result_is_cut_from_its_canvas():
    output, cat = padded_output()
    result = make_result(np.zeros((2, 3, 3), np.uint8), WORDS, output)
    np.testing.assert_array_equal(result.panoptic.id_map, [[2, 1, 1], [2, 1, 1]])
    assert [(s.id, s.name, s.is_thing, s.score, s.area, s.box) for s in result.panoptic.segments] == [
        (1, "sofa", False, 0.5, 4, (1, 0, 3, 2)),
        (2, "cat", True, 0.75, 2, (0, 0, 1, 2)),
    ]
    np.testing.assert_array_equal(result.semantic, result.panoptic.id_map)
    (instance,) = result.instances  # the second has no pixel
    assert (instance.name, instance.score, instance.area, instance.box) == ("cat", 0.75, 2, (0, 0, 1, 2))
    np.testing.assert_array_equal(instance.mask, cat)


def test_instances_are_drawn_from_the_checkpoints_threshold_on():
    """Of two cats, with scores of 0.875 and 0.25."""
    result = fake_result()
    lower = dataclasses.replace(result, instance_threshold=0.25)
    np.testing.assert_array_equal(lower.draw("instances"), result.draw("instances", threshold=0.25))
    np.testing.assert_array_equal(result.draw("instances"), lower.draw("instances", threshold=0.5))
    assert (np.asarray(lower.draw("instances")) != np.asarray(result.draw("instances"))).any()
    output, _ = padded_output()
    assert make_result(result.image[:2, :3], WORDS, output, instance_threshold=0.25).instance_threshold == 0.25


def test_output_of_another_dtype_is_refused():
    output, _ = padded_output()
    output = output._replace(segments=output.segments._replace(is_thing=np.zeros(3, np.int32)))
    with pytest.raises(TypeError, match=r"Postprocessed\.segments\.is_thing is int32\[3\], not Bool"):
        make_result(np.zeros((2, 3, 3), np.uint8), WORDS, output)


def test_an_annotation_as_a_result():
    """Crowds and segments without pixels are left out, and their ids are not reused."""
    id_map = np.array([[70000, 70000, 300], [7, 7, 300]])
    truth = Truth(id_map, np.array([70000, 7, 9, 300]), np.array([SOFA, CAT, CAT, CAT]), np.arange(4) == 1)
    result = truth_result(truth, np.zeros((2, 3, 3), np.uint8), WORDS)
    assert result.tasks == ("panoptic",)
    np.testing.assert_array_equal(result.panoptic.id_map, [[1, 1, 3], [0, 0, 3]])
    assert [(s.id, s.name, s.score, s.area, s.box) for s in result.panoptic.segments] == [
        (1, "sofa", 1.0, 2, (0, 0, 2, 1)),
        (3, "cat", 1.0, 2, (2, 0, 3, 2)),
    ]


def test_tasks_that_were_not_requested():
    result = truth_result(
        Truth(np.ones((2, 3), int), np.array([1]), np.array([CAT]), np.array([False])),
        np.zeros((2, 3, 3), np.uint8),
        WORDS,
    )
    with pytest.raises(ValueError, match="this result holds panoptic; segment with 'semantic' among the tasks"):
        result.draw("semantic")
    assert fake_result().tasks == ("panoptic", "semantic", "instances")


def test_a_line_and_a_picture():
    result = fake_result((48, 64))
    assert repr(result) == "Result(64x48: 3 segments, a semantic map of 2 classes, 2 instances)"
    with Image.open(io.BytesIO(result._repr_png_())) as shown:
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(result.draw()))
