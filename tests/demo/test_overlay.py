"""Tests the HTML of results: the map under the pointer, the table and the downloads."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from fcclip_jax.conventions import TASKS
from fcclip_jax.demo import overlay
from fcclip_jax.text.vocabulary import Vocabulary
from tests.inference.fake_results import empty_result, fake_result

RESULT = fake_result()


def downloads(html):
    """Returns the contents of the downloads, by file name."""
    links = re.findall(r'<a download="([^"]+)" href="data:([\w/]+);base64,([^"]+)"', html)
    return {file: base64.b64decode(content) for file, _, content in links}


def numbers(html):
    """Returns the map that the script reads."""
    (content,) = re.findall(r'class="numbers" src="data:image/png;base64,([^"]+)"', html)
    colors = np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(np.int64)
    return colors @ np.array([1, 256, 65536])


def test_panoptic_segments_are_listed_by_area():
    id_map, rows = overlay.mapped(RESULT, "panoptic", 0.5)
    np.testing.assert_array_equal(id_map, RESULT.panoptic.id_map)
    # 90 x 120 pixels: the sofa has 90 x 90, less the two cats.
    sofa, front, back = rows
    assert [(row.number, row.name, row.kind, row.score) for row in rows] == [
        (1, "sofa", "stuff", 0.75),
        (3, "cat", "thing", 0.875),
        (2, "cat", "thing", 0.5),
    ]
    assert (sofa.area, front.area, back.area) == tuple(int((id_map == row.number).sum()) for row in rows)


def test_semantic_classes_that_occur_are_listed():
    id_map, rows = overlay.mapped(RESULT, "semantic", 0.5)
    np.testing.assert_array_equal(id_map, RESULT.semantic + 1)
    assert [(row.number, row.name, row.score) for row in rows] == [(3, "sofa", None), (1, "cat", None)]
    assert sum(row.area for row in rows) == id_map.size


def test_the_best_of_overlapping_instances_is_under_the_pointer():
    id_map, rows = overlay.mapped(RESULT, "instances", 0.0)
    assert [(row.number, row.score) for row in rows] == [(1, 0.875), (2, 0.25)]
    front, back = (instance.mask for instance in RESULT.instances)
    assert (front & back).any()
    np.testing.assert_array_equal(id_map, np.where(front, 1, np.where(back, 2, 0)))


def test_instances_below_the_threshold_are_left_out():
    id_map, rows = overlay.mapped(RESULT, "instances", 0.5)
    assert [row.score for row in rows] == [0.875] and id_map.max() == 1
    assert len(overlay.coco(RESULT, "instances", 0.5)["annotations"]) == 1


@pytest.mark.parametrize("task", TASKS)
def test_the_page_holds_the_map_and_the_downloads(task):
    html = overlay.render(RESULT, task, 0.0)
    id_map, rows = overlay.mapped(RESULT, task, 0.0)
    np.testing.assert_array_equal(numbers(html), id_map)
    assert re.findall(r'data-number="(\d+)"', html) == [str(row.number) for row in rows]
    files = downloads(html)
    picture = Image.open(io.BytesIO(files[f"photograph.{task}.jpg"]))
    assert picture.size == RESULT.image.shape[1::-1]
    record = json.loads(files[f"{task}.json"])
    assert record["images"] == [{"id": 1, "file_name": "photograph.jpg", "width": 120, "height": 90}]
    assert [entry["name"] for entry in record["categories"]] == ["cat", "remote control", "sofa"]
    if task == "instances":
        assert [entry["area"] for entry in record["annotations"]] == [
            int(coco_mask.area(entry["segmentation"])) for entry in record["annotations"]
        ]
    else:
        stored = np.asarray(Image.open(io.BytesIO(files["photograph.png"])))
        expected = RESULT.semantic if task == "semantic" else id_map
        np.testing.assert_array_equal(stored if task == "semantic" else stored[..., 0], expected)


def test_the_hover_text_gives_name_score_and_area():
    html = overlay.render(RESULT, "panoptic", 0.5)
    area = int((RESULT.panoptic.id_map == 3).sum())
    assert f'data-number="3" data-label="cat, score 0.88, {area:,} px ({area / 10800:.1%})"' in html
    assert 'data-label="sofa, 0' not in overlay.render(RESULT, "semantic", 0.5)


def test_nothing_found():
    html = overlay.render(empty_result(), "panoptic", 0.5)
    assert "0 segments." in html and "<tbody></tbody>" in html and not numbers(html).any()


def test_words_are_escaped():
    """A visitor's word is text, for HTML and for Gradio's templates."""
    word = '<img src=x onerror="alert(1)"> ${value} {{value}}'
    result = fake_result(vocabulary=Vocabulary.from_words([word, "b", "c"]))
    html = overlay.render(result, "panoptic", 0.5)
    assert "<img src=x" not in html and "${" not in html and "{{" not in html
    assert "&lt;img src=x onerror=&quot;alert(1)&quot;&gt; &#36;&#123;value}" in html
