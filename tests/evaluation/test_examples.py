"""Opens the nine benchmarks in their official layouts, and the user's own data; refuses incomplete or wrong files."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.conventions import IGNORE
from fcclip_jax.evaluation.benchmarks import BENCHMARKS
from fcclip_jax.evaluation.examples import open_benchmark, open_semantic
from fcclip_jax.text.vocabulary import Vocabulary
from tests.evaluation import layouts
from tests.evaluation.layouts import write_photos

# Classes, things, the first and the last name, as the paper's table of datasets lists them.
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
    examples = open_benchmark(name, tmp_path)
    classes = examples.vocabulary.classes
    assert (len(classes), sum(examples.vocabulary.thing_mask), classes[0].name, classes[-1].name) == SIZES[name]
    assert len(examples) == 3
    for index, truth in enumerate(truths):
        example = examples[index]
        assert truth.name.endswith(str(examples.rows[index].image_id))
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
    every = open_benchmark("ade20k", tmp_path)
    some = every.spread(3)
    assert some.rows == [every.rows[index] for index in (0, 3, 6)] and some.sizes == [
        every.sizes[index] for index in (0, 3, 6)
    ]
    np.testing.assert_array_equal(some[1].semantic, every[3].semantic)
    np.testing.assert_array_equal(some[2].panoptic.id_map, every[6].panoptic.id_map)
    assert some.digest != every.digest and some.annotation_digest == every.annotation_digest


def test_only_what_is_evaluated_must_be_there(tmp_path):
    layouts.write("ade20k", tmp_path)
    folder = tmp_path / "ADEChallengeData2016"
    (folder / "ade20k_panoptic_val.json").unlink()
    (folder / "ade20k_instance_val.json").unlink()
    examples = open_benchmark("ade20k", tmp_path, ("semantic",))
    assert examples[0].panoptic is None and len(examples) == 3
    with pytest.raises(
        FileNotFoundError, match=r"ade20k_panoptic_val.json does not exist; make it with fcclip annotate ade20k --root"
    ):
        open_benchmark("ade20k", tmp_path)


@pytest.mark.parametrize("name", [name for name, row in BENCHMARKS.items() if row.panoptic is None])
def test_sets_that_no_json_speaks_of_are_whole(name, tmp_path):
    """They have as many images as `fcclip annotate` recorded or else as the official dataset."""
    layouts.write(name, tmp_path, 3)
    row = BENCHMARKS[name]
    folder = tmp_path / row.folder
    count_file = folder / "prepared_val.json"
    assert len(open_benchmark(name, tmp_path)) == 3
    extra = folder / row.images / "of_ones_own.jpg"
    Image.new("RGB", (8, 6)).save(extra)
    with pytest.raises(ValueError, match="has 4 images, but its preparation had 3: remove the images that do not"):
        open_benchmark(name, tmp_path)
    extra.unlink()
    spoilt = min((folder / row.images).iterdir())
    (folder / row.labels.folder / spoilt.name).with_suffix(row.labels.suffix).unlink()
    again = rf"{row.prepared_by} --root {tmp_path}\b"
    with pytest.raises(
        FileNotFoundError,
        match=rf"1 of 3 images have no label map\); make it with {row.prepared_by} --root {tmp_path}\b",
    ):
        open_benchmark(name, folder)
    spoilt.unlink()
    damaged = "prepared_val.json is damaged"
    contents = {'{"images": 3}': "has 2 of 3 images"} | dict.fromkeys(("{", "2", "[]", '{"images": "2"}'), damaged)
    for content, message in contents.items():
        count_file.write_text(content)
        with pytest.raises(ValueError, match=rf"{message}.*; repeat {again}"):
            open_benchmark(name, tmp_path)
    count_file.unlink()
    with pytest.raises(ValueError, match=rf"has 2 of {row.number} images: its preparation did not finish.*{again}"):
        open_benchmark(name, tmp_path)


def test_label_maps_of_ones_own(tmp_path):
    truths = layouts.write("pascal_context_59", tmp_path)
    folder = tmp_path / "pascal_ctx_d2"
    vocabulary = Vocabulary.load("pascal_context_59")
    labels = folder / "annotations_ctx59" / "validation"
    examples = open_semantic(folder / "images" / "validation", labels, vocabulary)
    np.testing.assert_array_equal(examples[2].semantic, truths[2].classes)
    path = labels / f"{truths[2].name}.png"
    numbers = np.asarray(Image.open(path))
    Image.fromarray(np.where(numbers == 255, 0, numbers + 1).astype(np.uint8)).save(path)
    examples = open_semantic(folder / "images" / "validation", labels, vocabulary, first_label=1)
    np.testing.assert_array_equal(examples[2].semantic, truths[2].classes)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"000000000102.jpg has no label map in .* \(1 of 3 images have none\)"):
        open_semantic(folder / "images" / "validation", labels, vocabulary)


def test_photographs_of_one_name_in_several_folders(tmp_path):
    paths = write_photos(tmp_path, {"x/0001": 0, "y/0001": 1})
    words = Vocabulary.from_words(["cat", "sofa"])
    examples = open_semantic(*paths, words)
    assert [row.image_id for row in examples.rows] == ["x/0001", "y/0001"]
    assert [np.unique(examples[index].semantic).tolist() for index in range(2)] == [[0], [1]]
    (tmp_path / "maps" / "y" / "0001.png").unlink()  # the map of x/0001 is not used for it
    with pytest.raises(FileNotFoundError, match="y/0001.jpg has no label map"):
        open_semantic(*paths, words)
    Image.new("RGB", (8, 6)).save(tmp_path / "photos" / "x" / "0001.jpeg")
    with pytest.raises(ValueError, match="2 images in .* are called x/0001"):
        open_semantic(*paths, words)


def test_every_label_map_of_ones_own_is_read(tmp_path):
    paths = write_photos(tmp_path, {"0001": 0, "0002": 7})
    with pytest.raises(ValueError, match="0002.png has the label 7, but the 2 classes of .* have the labels 0 to 1"):
        open_semantic(*paths, Vocabulary.from_words(["cat", "sofa"]))


def test_annotations_are_told_apart(tmp_path):
    layouts.write("ade20k", tmp_path)
    before = open_benchmark("ade20k", tmp_path).annotation_digest
    assert open_benchmark("ade20k", tmp_path).annotation_digest == before
    path = tmp_path / "ADEChallengeData2016" / "ade20k_panoptic_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    assert open_benchmark("ade20k", tmp_path).annotation_digest != before
    paths = write_photos(tmp_path, {"0001": 1})
    words = Vocabulary.from_words(["cat", "sofa"])
    digests = {open_semantic(*paths, words, first_label=first).annotation_digest for first in (0, 1)}
    assert len(digests) == 2


def test_areas_and_maps_tell_annotations_apart(tmp_path):
    layouts.write("coco", tmp_path)
    path = tmp_path / "coco" / "annotations" / "panoptic_val2017.json"
    before = open_benchmark("coco", tmp_path).annotation_digest
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["area"] += 1
    path.write_text(json.dumps(content))
    changed = open_benchmark("coco", tmp_path).annotation_digest
    png = min((tmp_path / "coco" / "annotations" / "panoptic_val2017").iterdir())
    png.write_bytes(png.read_bytes() + b" ")
    assert len({before, changed, open_benchmark("coco", tmp_path).annotation_digest}) == 3


def test_semantic_maps_follow_from_segments_where_they_are_not_asked_for(tmp_path):
    truths = layouts.write("ade20k", tmp_path)
    shutil.rmtree(tmp_path / "ADEChallengeData2016" / "annotations")
    examples = open_benchmark("ade20k", tmp_path, ("panoptic", "instances"))
    found = examples[0].semantic
    np.testing.assert_array_equal(found, truths[0].classes)


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "mapillary"])
def test_photographs_that_label_maps_speak_of_are_there(name, tmp_path):
    layouts.write(name, tmp_path)
    row = BENCHMARKS[name]
    path = min(path for path in (tmp_path / row.folder / row.images).rglob("*") if path.is_file())
    path.unlink()
    with pytest.raises(ValueError, match=r"whose photograph is not in .* \(1 are missing\)"):
        open_benchmark(name, tmp_path, ("semantic",))


def test_links_to_folders_and_hidden_files(tmp_path):
    layouts.write("cityscapes", tmp_path)
    city = next((tmp_path / "cityscapes" / "leftImg8bit" / "val").iterdir())
    city.rename(tmp_path / "elsewhere")
    city.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")  # links form a cycle
    (tmp_path / "elsewhere" / "._x_leftImg8bit.png").write_bytes(b"a Mac's")
    for tasks in (None, ("semantic",)):
        assert len(open_benchmark("cityscapes", tmp_path, tasks)) == 3


def test_a_map_that_could_be_either_of_two_files(tmp_path):
    layouts.write("ade20k", tmp_path)
    maps = tmp_path / "ADEChallengeData2016" / "annotations" / "validation"
    path = min(maps.iterdir())
    for folder in ("x", "y"):
        (maps / folder).mkdir()
        shutil.copy(path, maps / folder)
    assert len(open_benchmark("ade20k", tmp_path)) == 3  # the one that is not in a subfolder
    path.unlink()
    with pytest.raises(
        ValueError, match=f"names {path.name}, which may be x/{path.name} or y/{path.name} in .*validation"
    ):
        open_benchmark("ade20k", tmp_path)


def test_label_maps_are_only_files_that_can_be_maps(tmp_path):
    paths = write_photos(tmp_path, {"0": 0, "1": 1})
    words = Vocabulary.from_words(["cat", "sofa"])
    for name in ("0.json", "0.txt", "0.jpg", "0.zzz", ".0.png"):
        (paths[1] / name).write_text("{}")
    examples = open_semantic(*paths, words)
    assert [row.labels.path.name for row in examples.rows] == ["0.png", "1.png"]
    shutil.copy(paths[1] / "0.png", paths[1] / "0.TIF")
    with pytest.raises(ValueError, match="0.jpg names 0, which may be 0.TIF or 0.png in .*maps"):
        open_semantic(*paths, words)
    (paths[1] / "0.TIF").unlink()
    (paths[1] / "0.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"0.jpg has no label map in .*maps \(1 of 2 .*; the names of label maps end"
    ):
        open_semantic(*paths, words)


def test_label_maps_of_one_stem_in_two_folders(tmp_path):
    paths = write_photos(tmp_path, {"0": 0})
    (paths[1] / "0.png").rename(paths[1] / "1.png")
    for folder in ("x", "y"):
        (paths[1] / folder).mkdir()
        shutil.copy(paths[1] / "1.png", paths[1] / folder / "0.png")
    with pytest.raises(ValueError, match="0.jpg names 0, which may be x/0.png or y/0.png in .*maps"):
        open_semantic(*paths, Vocabulary.from_words(["cat"]))


def test_photographs_of_every_kind_are_evaluated(tmp_path):
    paths = write_photos(tmp_path, {"0": 0, "1": 1, "2": 0, "3": 1})
    for name, suffix in (("1", "jfif"), ("2", "webp"), ("3", "JP2")):
        Image.new("RGB", (8, 6)).save(paths[0] / f"{name}.{suffix}")
        (paths[0] / f"{name}.jpg").unlink()
    examples = open_semantic(*paths, Vocabulary.from_words(["cat", "sofa"]))
    assert [row.image_path.name for row in examples.rows] == ["0.jpg", "1.jfif", "2.webp", "3.JP2"]
    assert examples[3].image.shape == (6, 8, 3)


def test_names(tmp_path):
    with pytest.raises(ValueError, match="'ade20' is not a benchmark: did you mean ade20k"):
        open_benchmark("ade20", tmp_path)
    with pytest.raises(ValueError, match="A-847 has no panoptic annotation; set --config.panoptic=False"):
        open_benchmark("ade20k_847", tmp_path, ("panoptic",))
