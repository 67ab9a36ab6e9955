"""The nine readers, each on its official layout in small."""

import json
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image

from fcclip_jax.conventions import IGNORE
from fcclip_jax.data.annotations import pixels
from fcclip_jax.data.folder import list_files
from fcclip_jax.evaluation import benchmarks
from fcclip_jax.evaluation.benchmarks import BENCHMARKS
from fcclip_jax.text.vocabulary import Vocabulary

# classes, things, the first and the last by name: the paper's table of data sets
from tests.data import tiny
from tests.evaluation import layouts

SIZES = {
    "coco": (133, 80, "person", "rug"),
    "ade20k": (150, 100, "wall", "flag"),
    "cityscapes": (19, 8, "road", "bicycle"),
    "mapillary": (65, 37, "bird", "ego vehicle"),
    "ade20k_847": (847, 0, "wall", "adding machine"),
    "pascal_context_459": (459, 0, "accordion", "wool"),
    "pascal_context_59": (59, 0, "aeroplane", "wood piece"),
    "pascal_voc_21": (21, 0, "background", "tvmonitor"),
    "pascal_voc_20": (20, 0, "aeroplane", "tvmonitor"),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_reader(name, tmp_path):
    truths = layouts.write(name, tmp_path)
    examples = benchmarks.open_benchmark(name, tmp_path)
    classes = examples.vocabulary.classes
    assert (len(classes), sum(examples.vocabulary.thing_mask), classes[0].name, classes[-1].name) == SIZES[name]
    assert len(examples) == 3
    for index, truth in enumerate(truths):
        example = examples[index]
        assert truth.name.endswith(str(examples.image_ids[index]))
        np.testing.assert_array_equal(example.image, truth.image)
        np.testing.assert_array_equal(example.semantic, truth.classes)
        assert {0, len(classes) - 1, IGNORE} <= set(np.unique(example.semantic).tolist())
        assert (example.panoptic is None) == (BENCHMARKS[name].tasks == ("semantic",))
        if example.panoptic is not None:
            np.testing.assert_array_equal(example.panoptic.id_map, truth.segments)
            for id, index_of_class, area in zip(
                example.panoptic.ids, example.panoptic.classes, example.panoptic.areas, strict=True
            ):
                assert (truth.classes[truth.segments == id] == index_of_class).all()
                assert area == (truth.segments == id).sum()
    assert (examples.instances is None) == (BENCHMARKS[name].instances is None)


def test_some_of_the_images(tmp_path):
    layouts.write("ade20k", tmp_path, 7)
    every = benchmarks.open_benchmark("ade20k", tmp_path)
    some = every.spread(3)
    assert some.image_ids == [every.image_ids[index] for index in (0, 3, 6)]
    np.testing.assert_array_equal(some[1].semantic, every[3].semantic)
    np.testing.assert_array_equal(some[2].panoptic.id_map, every[6].panoptic.id_map)
    assert some.digest() != every.digest()


def test_only_what_is_evaluated_must_be_there(tmp_path):
    layouts.write("ade20k", tmp_path)
    folder = tmp_path / "ADEChallengeData2016"
    (folder / "ade20k_panoptic_val.json").unlink()
    (folder / "ade20k_instance_val.json").unlink()
    examples = benchmarks.open_benchmark("ade20k", tmp_path, ("semantic",))
    assert examples[0].panoptic is None and len(examples) == 3
    with pytest.raises(FileNotFoundError, match=r"ade20k_panoptic_val.json; fcclip annotate ade20k --root .* makes"):
        benchmarks.open_benchmark("ade20k", tmp_path)


@pytest.mark.parametrize("name", [name for name, row in BENCHMARKS.items() if row.panoptic is None])
def test_sets_that_no_json_speaks_of_are_whole(name, tmp_path):
    """As `fcclip annotate` left them, or as they are officially."""
    layouts.write(name, tmp_path, 3)
    row = BENCHMARKS[name]
    folder = tmp_path / row.folder
    count_file = folder / "prepared_val.json"
    assert len(benchmarks.open_benchmark(name, tmp_path)) == 3
    extra = folder / row.images / "of_ones_own.jpg"
    Image.new("RGB", (8, 6)).save(extra)
    with pytest.raises(ValueError, match="has 4 images, and its preparation had 3: remove those that are not"):
        benchmarks.open_benchmark(name, tmp_path)
    extra.unlink()
    spoilt = min((folder / row.images).iterdir())
    (folder / row.labels.folder / spoilt.name).with_suffix(row.labels.suffix).unlink()
    again = rf"{row.prepared_by} --root {tmp_path}\b"
    with pytest.raises(FileNotFoundError, match=rf"1 of 3 images have no label map\); {again}"):
        benchmarks.open_benchmark(name, folder)
    spoilt.unlink()
    damaged = "prepared_val.json is damaged"
    contents = {'{"images": 3}': "has 2 of 3 images"} | dict.fromkeys(("{", "2", "[]", '{"images": "2"}'), damaged)
    for content, message in contents.items():
        count_file.write_text(content)
        with pytest.raises(ValueError, match=rf"{message}.*; repeat {again}"):
            benchmarks.open_benchmark(name, tmp_path)
    count_file.unlink()
    with pytest.raises(ValueError, match=rf"has 2 of {row.number} images: its preparation was not finished.*{again}"):
        benchmarks.open_benchmark(name, tmp_path)


def test_label_maps_of_ones_own(tmp_path):
    truths = layouts.write("pascal_context_59", tmp_path)
    folder = tmp_path / "pascal_ctx_d2"
    vocabulary = Vocabulary.load("pascal_context_59")
    labels = folder / "annotations_ctx59" / "validation"
    examples = benchmarks.open_semantic(folder / "images" / "validation", labels, vocabulary)
    np.testing.assert_array_equal(examples[2].semantic, truths[2].classes)
    path = labels / f"{truths[2].name}.png"
    numbers = np.asarray(Image.open(path))
    Image.fromarray(np.where(numbers == 255, 0, numbers + 1).astype(np.uint8)).save(path)
    examples = benchmarks.open_semantic(folder / "images" / "validation", labels, vocabulary, first_label=1)
    np.testing.assert_array_equal(examples[2].semantic, truths[2].classes)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"000000000102.jpg has no label map in .* \(1 of 3 images have none\)"):
        benchmarks.open_semantic(folder / "images" / "validation", labels, vocabulary)


def _write_photos(folder, classes):
    """A photograph and a label map of one class each, by their name."""
    for name, label in classes.items():
        for path in (folder / "photos" / f"{name}.jpg", folder / "maps" / f"{name}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / "photos" / f"{name}.jpg")
        Image.fromarray(np.full((6, 8), label, np.uint8)).save(folder / "maps" / f"{name}.png")
    return folder / "photos", folder / "maps"


def test_photographs_of_one_name_in_several_folders(tmp_path):
    paths = _write_photos(tmp_path, {"x/0001": 0, "y/0001": 1})
    words = Vocabulary.from_words(["cat", "sofa"])
    examples = benchmarks.open_semantic(*paths, words)
    assert examples.image_ids == ["x/0001", "y/0001"]
    assert [np.unique(examples[index].semantic).tolist() for index in range(2)] == [[0], [1]]
    (tmp_path / "maps" / "y" / "0001.png").unlink()  # that of x/0001 is not taken for it
    with pytest.raises(FileNotFoundError, match="y/0001.jpg has no label map"):
        benchmarks.open_semantic(*paths, words)
    Image.new("RGB", (8, 6)).save(tmp_path / "photos" / "x" / "0001.jpeg")
    with pytest.raises(ValueError, match="2 images in .* are called x/0001"):
        benchmarks.open_semantic(*paths, words)


def test_eight_bits_of_more_classes(tmp_path):
    paths = _write_photos(tmp_path, {"0001": 200})
    assert (benchmarks.open_semantic(*paths, Vocabulary.load("ade20k_847"))[0].semantic == 200).all()


def test_every_label_map_of_ones_own_is_read(tmp_path):
    paths = _write_photos(tmp_path, {"0001": 0, "0002": 7})
    with pytest.raises(ValueError, match="0002.png has the label 7, which is none of the 2 classes"):
        benchmarks.open_semantic(*paths, Vocabulary.from_words(["cat", "sofa"]))


def test_annotations_are_told_apart(tmp_path):
    layouts.write("ade20k", tmp_path)
    before = benchmarks.open_benchmark("ade20k", tmp_path).annotation_digest()
    assert benchmarks.open_benchmark("ade20k", tmp_path).annotation_digest() == before
    path = tmp_path / "ADEChallengeData2016" / "ade20k_panoptic_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    assert benchmarks.open_benchmark("ade20k", tmp_path).annotation_digest() != before
    paths = _write_photos(tmp_path, {"0001": 1})
    words = Vocabulary.from_words(["cat", "sofa"])
    digests = {benchmarks.open_semantic(*paths, words, first_label=first).annotation_digest() for first in (0, 1)}
    assert len(digests) == 2


def test_areas_and_maps_tell_annotations_apart(tmp_path):
    layouts.write("coco", tmp_path)
    path = tmp_path / "coco" / "annotations" / "panoptic_val2017.json"
    before = benchmarks.open_benchmark("coco", tmp_path).annotation_digest()
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["area"] += 1
    path.write_text(json.dumps(content))
    changed = benchmarks.open_benchmark("coco", tmp_path).annotation_digest()
    png = min((tmp_path / "coco" / "annotations" / "panoptic_val2017").iterdir())
    png.write_bytes(png.read_bytes() + b" ")
    assert len({before, changed, benchmarks.open_benchmark("coco", tmp_path).annotation_digest()}) == 3


def test_an_area_below_the_segments_pixels_is_refused(tmp_path):
    """A larger one is not: ADE20K's have what later segments cover."""
    layouts.write("coco", tmp_path)
    path = tmp_path / "coco" / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    segment = content["annotations"][0]["segments_info"][0]
    pixels = segment["area"]
    for area in (pixels, pixels + 1):
        segment["area"] = area
        path.write_text(json.dumps(content))
        assert benchmarks.open_benchmark("coco", tmp_path)[0].panoptic.areas[0] == area
    segment["area"] = pixels - 1
    path.write_text(json.dumps(content))
    examples = benchmarks.open_benchmark("coco", tmp_path)
    with pytest.raises(
        ValueError,
        match=f"has {pixels} pixels of the segment {segment['id']}, and its segments_info an area of {pixels - 1}",
    ):
        examples[0]
    examples[1]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_greys_of_few_bits_are_numbers(bits, tmp_path):
    """Pillow stretches them to 8; programs that make PNGs small write them for maps of few classes."""
    numbers = np.arange(6 * 8).reshape(6, 8).astype(np.uint8) % min(2**bits, 4)
    paths = _write_photos(tmp_path, {"0001": 0})
    (paths[1] / "0001.png").write_bytes(tiny.grey_png(numbers, bits))
    examples = benchmarks.open_semantic(*paths, Vocabulary.from_words(["cat", "sofa", "wall", "sky"]))
    np.testing.assert_array_equal(examples[0].semantic, numbers)
    np.testing.assert_array_equal(pixels.read(paths[1] / "0001.png"), numbers)


def test_semantic_maps_follow_from_segments_where_they_are_not_asked_for(tmp_path):
    truths = layouts.write("ade20k", tmp_path)
    shutil.rmtree(tmp_path / "ADEChallengeData2016" / "annotations")
    examples = benchmarks.open_benchmark("ade20k", tmp_path, ("panoptic", "instances"))
    found = examples[0].semantic
    np.testing.assert_array_equal(found, truths[0].classes)


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "mapillary"])
def test_photographs_that_label_maps_speak_of_are_there(name, tmp_path):
    layouts.write(name, tmp_path)
    row = BENCHMARKS[name]
    path = min(path for path in (tmp_path / row.folder / row.images).rglob("*") if path.is_file())
    path.unlink()
    with pytest.raises(ValueError, match=r"whose photograph is not in .* \(1 are missing\)"):
        benchmarks.open_benchmark(name, tmp_path, ("semantic",))


def test_links_to_folders_and_hidden_files(tmp_path):
    layouts.write("cityscapes", tmp_path)
    city = next((tmp_path / "cityscapes" / "leftImg8bit" / "val").iterdir())
    city.rename(tmp_path / "elsewhere")
    city.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")  # round and round
    (tmp_path / "elsewhere" / "._x_leftImg8bit.png").write_bytes(b"a Mac's")
    for tasks in (None, ("semantic",)):
        assert len(benchmarks.open_benchmark("cityscapes", tmp_path, tasks)) == 3


def test_of_files_with_one_name_the_least_deep_counts(tmp_path):
    for folder in ("a/b", "c", "a/a"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "x.jpg").write_bytes(b"")
    assert list_files(epath.Path(tmp_path), "images")["x.jpg"] == "c/x.jpg"


def test_crowds_are_in_the_semantic_map():
    truth = benchmarks.Truth(
        np.array([[5, 5, 9], [0, 7, 9]]), np.array([9, 5]), np.array([2, 1]), np.array([True, False])
    )
    np.testing.assert_array_equal(benchmarks.classes_of(truth), [[1, 1, 2], [IGNORE, IGNORE, 2]])


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
        (_shrink_a_png, r"is \d+x\d+ pixels, and its panoptic map 20x10"),
        (_shrink_a_label_map, r"is \d+x\d+ pixels, and its label map 20x10"),
        (
            _edit_instance(category_id=777),
            "has the category 777, which is none of the things of the vocabulary 'ade20k_150'",
        ),
        (_edit_instance(category_id=0), "has the category 0, which is none of the things"),  # wall
        (
            _edit_instances(lambda content: content["images"].pop()),
            r"lacks the image '000000000102' \(1 of 3 images are missing\)",
        ),
        (_lose("iscrowd"), "an entry lacks 'iscrowd'"),
        (_lose("area"), "an entry lacks 'area'"),
        (_lose("id"), "an entry lacks 'id'"),
        (_lose("segmentation"), "an entry lacks 'segmentation'"),
        (_edit_instance(segmentation=[]), r"the annotation \d+ has neither polygons nor an RLE"),
        (_edit_instance(segmentation=[[1, 2, 3, 4]]), r"the annotation \d+ has neither polygons nor an RLE"),
        (
            _edit_instance(segmentation={"size": [3, 4], "counts": "12"}),
            r"the mask of the annotation \d+ is 4x3 pixels, and its",
        ),
        (_edit_instance(area="5"), r"the annotation \d+ has the area '5'"),
        (
            _edit_instances(lambda content: content["annotations"][1].update(id=content["annotations"][0]["id"])),
            r"has \d+ annotations of these images with \d+ ids",
        ),
        (_edit_instances(lambda content: content["images"][0].pop("width")), "an entry lacks 'width'"),
        (
            _edit_instances(lambda content: content["images"][0].update(height=7)),
            r"is \d+x\d+ pixels, and its instance annotation \d+x7|the mask of the annotation",
        ),
        (lambda folder: (folder / "ade20k_instance_val.json").unlink(), "there is no instance annotation at"),
        (
            lambda folder: (folder / "ade20k_instance_val.json").write_text("[]"),
            "is no annotation of these images in COCO's",
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
        benchmarks.open_benchmark("ade20k", tmp_path)
    assert "\n" not in str(caught.value)


def test_what_reading_refuses(tmp_path):
    layouts.write("ade20k", tmp_path)
    examples = benchmarks.open_benchmark("ade20k", tmp_path)
    path = min((tmp_path / "ADEChallengeData2016" / "annotations" / "validation").iterdir())
    shape = examples[0].image.shape[:2]
    Image.fromarray(np.full(shape, 200, np.uint8)).save(path)
    with pytest.raises(
        ValueError, match="has the label 200, which is none of the 150 classes of 'ade20k_150' from 1 on"
    ):
        examples[0]
    Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(path)
    with pytest.raises(ValueError, match="a label map has one channel of class numbers, not Pillow's mode RGB"):
        examples[0]
    Image.fromarray(np.random.default_rng(0).integers(0, 151, shape).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="the label map cannot be read"):
        examples[0]


def test_instance_ids_of_no_label(tmp_path):
    layouts.write("cityscapes", tmp_path)
    examples = benchmarks.open_benchmark("cityscapes", tmp_path)
    path = min((tmp_path / "cityscapes" / "gtFine" / "val").rglob("*_instanceIds.png"))
    Image.fromarray(np.full(examples[0].image.shape[:2], 34_000, np.uint16)).save(path)
    with pytest.raises(ValueError, match="has the id 34000, and there is no label 34"):
        examples[0]


def test_ids_from_0_are_numbered_anew(tmp_path):
    """pycocotools takes the id 0 for no annotation."""
    layouts.write("ade20k", tmp_path)
    _edit_instances(lambda content: [entry.update(id=id) for id, entry in enumerate(content["annotations"])])(
        tmp_path / "ADEChallengeData2016"
    )
    annotations = benchmarks.open_benchmark("ade20k", tmp_path).instances["annotations"]
    assert [entry["id"] for entry in annotations] == list(range(1, len(annotations) + 1))


def test_names(tmp_path):
    with pytest.raises(ValueError, match="no benchmark is called 'ade20': did you mean ade20k"):
        benchmarks.open_benchmark("ade20", tmp_path)
    with pytest.raises(ValueError, match="A-847 has no panoptic annotation; set --config.panoptic=False"):
        benchmarks.open_benchmark("ade20k_847", tmp_path, ("panoptic",))
