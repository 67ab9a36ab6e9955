"""Tests datasets in folders: their records, and one sentence for each error in a folder."""

import io
import re

import numpy as np
import pytest
from PIL import ExifTags, Image

from fcclip_jax.data import decoding, images
from fcclip_jax.data.coco_json import vocabulary_of
from fcclip_jax.data.folder import FolderDataset
from fcclip_jax.text.vocabulary import color_of
from tests.data import tiny


@pytest.fixture
def paths(tmp_path):
    return tiny.write(tmp_path, 3)


def test_records(paths):
    dataset = FolderDataset(*paths)
    assert len(dataset) == 3 and dataset.name == "panoptic"
    record = dataset[1]
    assert (record.image_id, record.file_name) == (101, "001.jpg")
    assert record.segments.tolist() == [[70001, 7, 0], [5, 9, 1], [301, 3, 0], [123456, 9, 0]]
    image, segments = decoding.decode(record)
    width = image.shape[1]
    # The crowd is removed, the segment without pixels is kept.
    assert segments.categories.tolist() == [7, 3, 9] and segments.cut == 0
    assert segments.segment_map[0, 0] == 0 and segments.segment_map[-1, 0] == 1
    assert segments.segment_map[-1, width // 2] == 255 and (segments.segment_map[:, -2:] == 255).all()
    assert set(np.unique(segments.segment_map)) == {0, 1, 255}


def test_categories_become_the_vocabulary(paths):
    cat, sky, dog = FolderDataset(*paths).vocabulary.classes
    assert (cat.id, cat.names, cat.is_thing, cat.color) == (3, ("cat", "kitten"), True, (10, 20, 30))
    assert (sky.id, sky.names, sky.is_thing) == (7, ("sky", "clouds"), False)
    assert (dog.names, dog.is_thing, dog.color) == (("dog",), True, color_of("dog"))
    with pytest.raises(ValueError, match="farm.json gives the id 3 to the categories 'cat, kitten' and 'cow'"):
        vocabulary_of([*tiny.CATEGORIES, {"id": 3, "name": "cow"}], "farm.json")
    with pytest.raises(ValueError, match="the category {'id': 3} of farm.json is not of the form"):
        vocabulary_of([{"id": 3}], "farm.json")


def _lose_images(paths):
    paths.images.rename(paths.images.with_name("moved"))


def _lose_an_image(paths):
    (paths.images / "001.jpg").unlink()


def _lose_a_png(paths):
    (paths.pngs / "002.png").unlink()


def _edit(change):
    return lambda paths: paths.edit(change)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_lose_images, "the folder of images .*images does not exist"),
        (
            lambda paths: paths.pngs.rename(paths.pngs.with_name("moved")),
            "the folder of panoptic PNGs .*pngs does not exist",
        ),
        (lambda paths: paths.json.unlink(), "the panoptic annotation .*panoptic.json does not exist"),
        (lambda paths: paths.json.write_text("{"), "panoptic.json is not JSON"),
        (lambda paths: paths.json.write_text("[]"), "a list of images, annotations or categories is missing"),
        (_lose_an_image, r"names 001.jpg, which is not in .*images \(1 of 3 files are missing\)"),
        (_lose_a_png, r"names 002.png, which is not in .*pngs \(1 of 3 files are missing\)"),
        (_edit(lambda content: content["annotations"].clear()), "has no annotations"),
        (
            _edit(lambda content: content["images"].pop()),
            "annotates the image_id 102, which is not in its list of images",
        ),
        (
            _edit(lambda content: content["annotations"].pop()),
            r"has no annotation of its image 002.jpg \(1 of 3 images have none\)",
        ),
        (
            _edit(lambda content: content["annotations"].append(content["annotations"][1])),
            "annotates the image 001.jpg 2 times",
        ),
        (_edit(lambda content: content["annotations"][1].update(image_id=[1])), "is not in COCO's panoptic format"),
        (
            _edit(lambda content: content["annotations"][1]["segments_info"][2].update(id=5)),
            "the segment 5 of 001.png in .* appears twice",
        ),
        (
            _edit(lambda content: content["annotations"][1]["segments_info"][2].update(area="5")),
            "a segment of 001.png in .*panoptic.json has the area '5', not a number of pixels",
        ),
        (
            _edit(lambda content: content["annotations"][1]["segments_info"][2].update(area=-1)),
            "a segment of 001.png in .*panoptic.json has the area -1, not a number of pixels",
        ),
        (
            _edit(lambda content: content["annotations"][1].pop("segments_info")),
            "'segments_info' is missing in an entry",
        ),
        (
            _edit(lambda content: content["annotations"][1]["segments_info"][2].update(category_id=77)),
            "the segment 301 of 001.png in .* has the category 77, which is not in the vocabulary 'panoptic'",
        ),
        (
            _edit(lambda content: content["annotations"][2]["segments_info"][0].update(id=1 << 24)),
            "the segment 16777216 of 002.png in .* is out of range",
        ),
        (
            _edit(lambda content: content["images"][1].update(id=100)),
            r"panoptic.json is not in .*: 000.jpg and 001.jpg are listed with the id 100; give each image its own id",
        ),
        (
            _edit(lambda content: content["images"].append(content["images"][1])),
            "panoptic.json is not in .*: the image 001.jpg is listed twice with the id 101",
        ),
        (
            _edit(lambda content: content["images"][1].update(file_name="./000.jpg")),
            "panoptic.json has one file, .*000.jpg, for the images 100 and 101; give each image its own",
        ),
        (
            _edit(lambda content: content["annotations"][1].update(file_name="000.png")),
            "panoptic.json has one file, .*000.png, for the images 100 and 101; give each image its own",
        ),
        (
            _edit(lambda content: content["images"][1].update(file_name=7)),
            "panoptic.json is not in .*: a file_name is 7, not",
        ),
        (
            _edit(lambda content: content["images"][1].update(id=101.5)),
            r"panoptic.json is not in .*: the image 001.jpg has the id 101.5; ids are whole numbers or text",
        ),
        (
            _edit(lambda content: content["images"][1].update(id="101")),
            r"panoptic.json is not in .*: image ids are 100 and '101'; write all as numbers, or all as text",
        ),
        (
            _edit(lambda content: content["categories"][1].update(name="Cat")),
            "panoptic.json calls both the category 3 and the category 7 'Cat'; names must differ",
        ),
        (
            _edit(lambda content: content["categories"][1].update(id=3)),
            "panoptic.json gives the id 3 to the categories 'cat, kitten' and 'sky'; ids must differ",
        ),
        *(
            (
                _edit(lambda content, value=value: content["categories"][1].update(isthing=value)),
                rf"the category 'sky' of .*panoptic.json has isthing {value!r}; write 1 for things, 0 for stuff",
            )
            for value in ("0", "false", 2, None)
        ),
        (
            _edit(lambda content: content["categories"][1].update(synonyms="clouds")),
            "the category 'sky' of .*panoptic.json has the synonyms 'clouds'; write a list of words",
        ),
        (
            _edit(lambda content: content["categories"][1].update(color=[1, 2])),
            r"the categories of .*panoptic.json: the class .*\[1, 2\].* is not of the form",
        ),
        (
            _edit(lambda content: content["annotations"][1]["segments_info"][2].update(id=0)),
            "the segment 0 of 001.png in .* is out of range; ids are from 1 to 16777215, 0 is void",
        ),
        *(
            (
                _edit(lambda content, edit=edit: content["annotations"][1]["segments_info"][2].update(edit)),
                rf"the segment {edit.get('id', 301)!r} of 001.png in .*panoptic.json has the {key} {edit[key]!r}, not {form}",
            )
            for key, form, edit in (
                ("id", "a whole number", {"id": "301"}),
                ("id", "a whole number", {"id": 301.5}),
                ("id", "a whole number", {"id": 10**30}),
                ("category_id", "a whole number", {"category_id": "3"}),
                ("category_id", "a whole number", {"category_id": True}),
                ("iscrowd", "0 or 1", {"iscrowd": "0"}),
                ("iscrowd", "0 or 1", {"iscrowd": 2}),
                ("iscrowd", "0 or 1", {"iscrowd": None}),
            )
        ),
    ],
)
def test_what_opening_refuses(paths, damage, message):
    damage(paths)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        FolderDataset(*paths)
    assert "\n" not in str(caught.value)


def test_what_reading_refuses(paths):
    dataset = FolderDataset(*paths)
    image, png = paths.images / "001.jpg", paths.pngs / "001.png"
    whole, whole_png = image.read_bytes(), png.read_bytes()
    for damage, message in (
        (lambda: image.write_bytes(whole[:-100]), "001.jpg: the image cannot be read: .*truncated"),
        (lambda: image.write_bytes(b""), "001.jpg: the image cannot be read: it is not an image in a known format"),
        (
            lambda: image.write_bytes((paths.images / "000.jpg").read_bytes()),
            r"the image is \d+x\d+ pixels, its panoptic",
        ),
        (lambda: png.write_bytes(whole_png[: len(whole_png) // 2]), "001.jpg: the panoptic PNG is damaged"),
        (lambda: png.write_bytes(b""), "001.jpg: the panoptic PNG is damaged"),
    ):
        image.write_bytes(whole)
        png.write_bytes(whole_png)
        damage()
        with pytest.raises(ValueError, match=message):
            decoding.decode(dataset[1])
    image.write_bytes(whole)
    height, width = decoding.decode_image(whole).shape[:2]
    png.write_bytes(tiny.ids_to_png(np.full((height, width), 999)))
    with pytest.raises(
        ValueError,
        match=re.escape("001.jpg: the panoptic PNG has the segment id 999, which is not in its segments_info"),
    ):
        decoding.decode(dataset[1])
    # The failure leaves no trace in the table of ids.
    png.write_bytes(whole_png)
    assert decoding.decode(dataset[1])[1].categories.tolist() == [7, 3, 9]


def test_images_that_are_no_plain_jpeg():
    """Pillow decodes PNGs, grey images and turned photographs, with the same result as elsewhere."""
    pixels = np.arange(24 * 32 * 3, dtype=np.uint32).reshape(24, 32, 3).astype(np.uint8)
    np.testing.assert_array_equal(decoding.decode_image(tiny.encode(pixels, "png")), pixels)
    grey = tiny.encode(pixels[..., 0], "jpeg")
    expected = np.asarray(Image.open(io.BytesIO(grey)).convert("RGB"))
    np.testing.assert_array_equal(decoding.decode_image(grey), expected)
    photo = Image.fromarray(pixels)
    exif = photo.getexif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    photo.save(buffer, "jpeg", exif=exif)
    turned = decoding.decode_image(buffer.getvalue())
    assert turned.shape == (32, 24, 3)
    np.testing.assert_array_equal(turned, images.load_image(Image.open(buffer)))


def test_the_largest_segments_are_kept():
    ids = np.array([[1, 1, 2, 3, 3, 3], [4, 4, 4, 4, 0, 5]], np.int32)
    rows = np.array([[5, 10, 0], [4, 11, 1], [3, 12, 0], [2, 13, 0], [1, 14, 0]])
    segments = decoding.segments_of(ids, rows, max_segments=2)
    assert segments.categories.tolist() == [12, 14] and segments.cut == 2
    assert segments.segment_map.tolist() == [[1, 1, 255, 0, 0, 0], [255] * 6]
