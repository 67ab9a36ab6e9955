"""The readers of annotation files: the arrays that they return, and the files that they refuse."""

import json

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.conventions import IGNORE
from fcclip_jax.data.annotations import pixels
from fcclip_jax.evaluation.examples import open_benchmark, open_semantic
from fcclip_jax.evaluation.ground_truth import semantic_from_panoptic
from fcclip_jax.metrics.panoptic import Truth
from fcclip_jax.text.vocabulary import Vocabulary
from tests.data import tiny
from tests.evaluation import layouts
from tests.evaluation.layouts import write_photos


def test_eight_bits_of_more_classes(tmp_path):
    paths = write_photos(tmp_path, {"0001": 200})
    assert (open_semantic(*paths, Vocabulary.load("ade20k_847"))[0].semantic == 200).all()


def test_an_area_below_the_segments_pixels_is_refused(tmp_path):
    """Larger areas are accepted: ADE20K's include pixels that later segments cover."""
    layouts.write("coco", tmp_path)
    path = tmp_path / "coco" / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    segment = content["annotations"][0]["segments_info"][0]
    pixels = segment["area"]
    for area in (pixels, pixels + 1):
        segment["area"] = area
        path.write_text(json.dumps(content))
        assert open_benchmark("coco", tmp_path)[0].panoptic.areas[0] == area
    segment["area"] = pixels - 1
    path.write_text(json.dumps(content))
    examples = open_benchmark("coco", tmp_path)
    with pytest.raises(
        ValueError,
        match=f"has {pixels} pixels of the segment {segment['id']}, but its segments_info gives an area of {pixels - 1}",
    ):
        examples[0]
    examples[1]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_greys_of_few_bits_are_numbers(bits, tmp_path):
    """PNG compressors write 1 to 4 bits for maps of few classes, which Pillow stretches to 8 bits."""
    numbers = np.arange(6 * 8).reshape(6, 8).astype(np.uint8) % min(2**bits, 4)
    paths = write_photos(tmp_path, {"0001": 0})
    (paths[1] / "0001.png").write_bytes(tiny.grey_png(numbers, bits))
    examples = open_semantic(*paths, Vocabulary.from_words(["cat", "sofa", "wall", "sky"]))
    np.testing.assert_array_equal(examples[0].semantic, numbers)
    np.testing.assert_array_equal(pixels.read(paths[1] / "0001.png"), numbers)


def test_crowds_are_in_the_semantic_map():
    truth = Truth(np.array([[5, 5, 9], [0, 7, 9]]), np.array([9, 5]), np.array([2, 1]), np.array([True, False]))
    np.testing.assert_array_equal(semantic_from_panoptic(truth), [[1, 1, 2], [IGNORE, IGNORE, 2]])


def _shrink_a_png(folder):
    Image.new("RGB", (20, 10)).save(next((folder / "ade20k_panoptic_val").iterdir()))


def _shrink_a_label_map(folder):
    Image.new("L", (20, 10)).save(next((folder / "annotations" / "validation").iterdir()))


def _edit_instances(change):
    def damage(folder):
        path = folder / "ade20k_instance_val.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def _edit_instance(**values):
    return _edit_instances(lambda content: content["annotations"][0].update(values))


def _lose(key):
    return _edit_instances(lambda content: content["annotations"][0].pop(key))


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda folder: next((folder / "annotations" / "validation").iterdir()).unlink(),
            "1 of 3 images have no label",
        ),
        (_shrink_a_png, r"is \d+x\d+ pixels, but its panoptic map is 20x10"),
        (_shrink_a_label_map, r"is \d+x\d+ pixels, but its label map is 20x10"),
        (
            _edit_instance(category_id=777),
            "has the category 777, which is not a thing class of the vocabulary 'ade20k_150'",
        ),
        (_edit_instance(category_id=0), "has the category 0, which is not a thing class"),  # wall
        (
            _edit_instances(lambda content: content["images"].pop()),
            r"the image '000000000102' is missing \(1 of 3 images are\)",
        ),
        (_lose("iscrowd"), "an entry has no 'iscrowd'"),
        (_lose("area"), "an entry has no 'area'"),
        (_lose("id"), "an entry has no 'id'"),
        (_lose("segmentation"), "an entry has no 'segmentation'"),
        (_edit_instance(segmentation=[]), r"the annotation \d+ has neither polygons nor an RLE"),
        (_edit_instance(segmentation=[[1, 2, 3, 4]]), r"the annotation \d+ has neither polygons nor an RLE"),
        (
            _edit_instance(segmentation={"size": [3, 4], "counts": "12"}),
            r"the mask of the annotation \d+ is 4x3 pixels, but its image is",
        ),
        (_edit_instance(area="5"), r"the annotation \d+ has the area '5'"),
        (
            _edit_instances(lambda content: content["annotations"][1].update(id=content["annotations"][0]["id"])),
            r"has \d+ annotations of these images but only \d+ ids",
        ),
        (_edit_instances(lambda content: content["images"][0].pop("width")), "an entry has no 'width'"),
        (
            _edit_instances(lambda content: content["images"].append(content["images"][0])),
            "ade20k_instance_val.json does not .*: the image 000000000100.jpg is listed twice with the id '000000000100'",
        ),
        (
            _edit_instances(lambda content: content["categories"].append(content["categories"][0])),
            r"ade20k_instance_val.json gives the id \d+ to the categories",
        ),
        (
            _edit_instances(lambda content: content["images"][0].update(height=7)),
            r"is \d+x\d+ pixels, but its instance annotation is \d+x7|the mask of the annotation",
        ),
        (lambda folder: (folder / "ade20k_instance_val.json").unlink(), "ade20k_instance_val.json does not exist"),
        (
            lambda folder: (folder / "ade20k_instance_val.json").write_text("[]"),
            "does not annotate these images in COCO's",
        ),
        (
            lambda folder: next((folder / "images" / "validation").iterdir()).write_bytes(b"no image"),
            "cannot read .*jpg",
        ),
    ],
)
def test_what_opening_refuses(damage, message, tmp_path):
    layouts.write("ade20k", tmp_path)
    damage(tmp_path / "ADEChallengeData2016")
    with pytest.raises((ValueError, OSError), match=message) as caught:
        open_benchmark("ade20k", tmp_path)
    assert "\n" not in str(caught.value)


def test_what_reading_refuses(tmp_path):
    layouts.write("ade20k", tmp_path)
    examples = open_benchmark("ade20k", tmp_path)
    path = min((tmp_path / "ADEChallengeData2016" / "annotations" / "validation").iterdir())
    shape = examples[0].image.shape[:2]
    Image.fromarray(np.full(shape, 200, np.uint8)).save(path)
    with pytest.raises(
        ValueError, match="has the label 200, but the 150 classes of 'ade20k_150' have the labels 1 to 150"
    ):
        examples[0]
    Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(path)
    with pytest.raises(
        ValueError, match="a label map must have one channel of class numbers, but Pillow's mode is RGB"
    ):
        examples[0]
    Image.fromarray(np.random.default_rng(0).integers(0, 151, shape).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="the label map cannot be read"):
        examples[0]


def test_instance_ids_of_no_label(tmp_path):
    layouts.write("cityscapes", tmp_path)
    examples = open_benchmark("cityscapes", tmp_path)
    path = min((tmp_path / "cityscapes" / "gtFine" / "val").rglob("*_instanceIds.png"))
    Image.fromarray(np.full(examples[0].image.shape[:2], 34_000, np.uint16)).save(path)
    with pytest.raises(ValueError, match="has the id 34000, whose label 34 does not exist"):
        examples[0]


def test_ids_from_0_are_numbered_anew(tmp_path):
    """pycocotools treats the id 0 as no annotation."""
    layouts.write("ade20k", tmp_path)
    _edit_instances(lambda content: [entry.update(id=id) for id, entry in enumerate(content["annotations"])])(
        tmp_path / "ADEChallengeData2016"
    )
    annotations = open_benchmark("ade20k", tmp_path).instances["annotations"]
    assert [entry["id"] for entry in annotations] == list(range(1, len(annotations) + 1))
