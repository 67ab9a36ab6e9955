"""Exported files, read back with public readers or a few lines of code, against the results."""

import errno
import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from fcclip_jax.conventions import TASKS
from fcclip_jax.data.images import load_image
from fcclip_jax.files import write_files
from fcclip_jax.inference import result_files
from fcclip_jax.inference.result_files import Exporter, NamedPhoto, encode_ids, name_photos
from fcclip_jax.inference.results import Result
from fcclip_jax.text.vocabulary import Vocabulary
from tests.inference.fake_results import WORDS, empty_result, fake_result


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def decode_ids(path):
    with Image.open(path) as png:
        assert png.mode == "RGB"
        red, green, blue = np.moveaxis(np.asarray(png).astype(int), -1, 0)
    return red + 256 * green + 65536 * blue


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def exported(tmp_path):
    """Three images: two full, one empty."""
    results = [fake_result((90, 120)), fake_result((61, 47), seed=1), empty_result()]
    photos = name_photos([pathlib.Path(f"photos/{name}.jpg") for name in ("a", "b", "c")])
    exporter = Exporter(tmp_path, WORDS, tasks=("panoptic", "instances"), threshold=0.0)
    for photo, result in zip(photos, results, strict=True):
        exporter.keep(exporter.write(photo, result))
    exporter.finish()
    return tmp_path, results


def test_ids_as_colours():
    ids = np.array([[0, 1, 255], [256, 65535, 65536], [65537, 2**24 - 1, 300]], np.int32)
    colors = encode_ids(ids)
    np.testing.assert_array_equal(colors[1, 0], [0, 1, 0])
    np.testing.assert_array_equal(colors[1, 2], [0, 0, 1])
    np.testing.assert_array_equal(colors[2, 2], [44, 1, 0])
    np.testing.assert_array_equal(colors.astype(int) @ [1, 256, 65536], ids)


def test_panoptic_files_describe_each_other(exported):
    folder, results = exported
    record = read_json(folder / "panoptic.json")
    assert [image["id"] for image in record["images"]] == [1, 2, 3]
    assert record["images"][1] == {"id": 2, "file_name": "photos/b.jpg", "width": 47, "height": 61}
    assert [annotation["image_id"] for annotation in record["annotations"]] == [1, 2, 3]
    thing = {category["id"]: category["isthing"] for category in record["categories"]}
    assert thing == {1: 1, 2: 1, 3: 0}
    for annotation, result in zip(record["annotations"], results, strict=True):
        ids = decode_ids(folder / "panoptic" / annotation["file_name"])
        np.testing.assert_array_equal(ids, result.panoptic.id_map)
        infos = annotation["segments_info"]
        assert {0, *(info["id"] for info in infos)} == set(np.unique(ids))
        for info, segment in zip(infos, result.panoptic.segments, strict=True):
            y, x = np.nonzero(ids == info["id"])
            assert info["area"] == len(x)
            left, top = x.min(), y.min()
            box = [left, top, x.max() + 1 - left, y.max() + 1 - top]
            assert info["bbox"] == box
            assert info["iscrowd"] == 0
            assert (info["category_id"], info["score"]) == (segment.entry.id, segment.score)


# pycocotools' decoder has no NumPy 2 copy argument.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_instances_load_as_coco_results(exported):
    folder, results = exported
    truth = COCO(folder / "images.json")
    loaded = truth.loadRes(str(folder / "instances.json"))
    for image_id, result in enumerate(results, start=1):
        annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=[image_id]))
        assert len(annotations) == len(result.instances)
        for annotation, instance in zip(annotations, result.instances, strict=True):
            mask = loaded.annToMask(annotation)
            np.testing.assert_array_equal(mask.astype(bool), instance.mask)
            assert annotation["bbox"] == coco_mask.toBbox(loaded.annToRLE(annotation)).tolist()
            assert annotation["category_id"] == 1
            assert annotation["score"] == instance.score
    assert truth.loadCats([3])[0]["name"] == "sofa"


def test_instances_from_the_threshold_on(tmp_path):
    exporter = Exporter(tmp_path, WORDS, tasks=["instances"], threshold=0.5)
    exporter.keep(exporter.write(NamedPhoto(pathlib.Path("a.jpg"), 1, "a"), fake_result()))
    exporter.finish()
    assert [record["score"] for record in read_json(tmp_path / "instances.json")] == [0.875]
    assert files_in(tmp_path) == ["images.json", "instances.json", "overlays/a.instances.jpg"]


@pytest.mark.parametrize(
    ("count", "mode", "dtype"), [(3, "L", np.uint8), (255, "L", np.uint8), (256, "I;16", np.uint16)]
)
def test_semantic_maps_hold_class_indices(tmp_path, count, mode, dtype):
    vocabulary = Vocabulary.from_words([f"w{i}" for i in range(count)])
    result = fake_result(vocabulary=vocabulary)
    exporter = Exporter(tmp_path, vocabulary, tasks=["semantic"], threshold=0.5)
    exporter.keep(exporter.write(NamedPhoto(pathlib.Path("a.jpg"), 1, "a"), result))
    exporter.finish()
    with Image.open(tmp_path / "semantic/a.png") as png:
        assert png.mode == mode
        pixels = np.asarray(png)
    assert pixels.dtype == dtype and pixels.max() == count - 1
    np.testing.assert_array_equal(pixels, result.semantic)
    legend = {category["index"]: category for category in read_json(tmp_path / "images.json")["categories"]}
    assert legend[count - 1]["name"] == f"w{count - 1}" and legend[count - 1]["id"] == count


def test_more_classes_than_a_semantic_map_can_number():
    vocabulary = Vocabulary("many", WORDS.classes * (2**16 // 3 + 1))
    with pytest.raises(ValueError, match="65538 classes are more than the 65536"):
        Exporter(pathlib.Path("out"), vocabulary, tasks=TASKS, threshold=0.5)
    Exporter(pathlib.Path("out"), vocabulary, tasks=["panoptic"], threshold=0.5)


def test_categories_keep_the_ids_of_their_dataset():
    vocabulary = Vocabulary.load("coco_panoptic")
    by_id = {category["id"]: category for category in result_files.categories(vocabulary)}
    assert by_id[1]["name"] == "person" and by_id[1]["isthing"] == 1 and by_id[1]["index"] == 0
    assert by_id[200]["isthing"] == 0, "200, the last, is a rug"
    assert by_id[1]["color"] == vocabulary.classes[0].color
    assert json.dumps(result_files.categories(WORDS)[0]) == json.dumps(
        {"id": 1, "index": 0, "name": "cat", "synonyms": ["kitten"], "isthing": 1, "color": WORDS.classes[0].color}
    )


@pytest.mark.parametrize(
    ("paths", "names", "ids"),
    [
        (["a.jpg", "b.png"], ["a", "b"], [1, 2]),
        (["x/a.jpg", "y/a.jpg", "z/a.png"], ["a", "a-2", "a-3"], [1, 2, 3]),
        (["x/a.jpg", "y/a.jpg", "z/a-2.jpg"], ["a", "a-3", "a-2"], [1, 2, 3]),
        (["z/a-2.jpg", "x/a.jpg", "y/a.jpg", "w/a-2.jpg"], ["a-2", "a", "a-3", "a-2-2"], [1, 2, 3, 4]),
        (["x/Cat.jpg", "y/cAT.jpg"], ["Cat", "cAT-2"], [1, 2]),
        (["000000039769.jpg", "000000142238.jpg"], ["000000039769", "000000142238"], [39769, 142238]),
        (["7.jpg", "007.jpg"], ["7", "007"], [1, 2]),
        (["7.jpg", "cat.jpg"], ["7", "cat"], [1, 2]),
        (["x/7.jpg", "y/7.jpg"], ["7", "7-2"], [1, 2]),
    ],
)
def test_names_and_ids_are_unique(paths, names, ids):
    photos = name_photos([pathlib.Path(path) for path in paths])
    assert [photo.name for photo in photos] == names
    assert [photo.id for photo in photos] == ids
    assert [photo.path.as_posix() for photo in photos] == paths


def test_a_digit_that_is_no_number():
    """ "²" is a digit for Python, but no number."""
    known = [NamedPhoto(pathlib.Path("².jpg"), 1, "²")]
    assert name_photos([pathlib.Path("3.jpg")], known) == [NamedPhoto(pathlib.Path("3.jpg"), 2, "3")]


def test_photographs_of_one_name_do_not_overwrite_each_other(tmp_path):
    results = [fake_result((30, 40)), fake_result((50, 60))]
    exporter = Exporter(tmp_path, WORDS, tasks=TASKS, threshold=0.5)
    for photo, result in zip(name_photos([pathlib.Path("x/a.jpg"), pathlib.Path("y/a.jpg")]), results, strict=True):
        exporter.keep(exporter.write(photo, result))
    exporter.finish()
    annotations = read_json(tmp_path / "panoptic.json")["annotations"]
    for annotation, result in zip(annotations, results, strict=True):
        ids = decode_ids(tmp_path / "panoptic" / annotation["file_name"])
        np.testing.assert_array_equal(ids, result.panoptic.id_map)
    for task in TASKS:
        sizes = [load_image(tmp_path / f"overlays/{name}.{task}.jpg").shape[:2] for name in ("a", "a-2")]
        assert sizes == [(30, 40), (50, 60)]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["write", "second write", "rename"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, step):
    """Earlier files stay and none is added, whichever step fails."""
    old = {tmp_path / "a.png": b"old a", tmp_path / "sub/b.json": b"old b"}
    write_files(old)
    real = pathlib.Path.write_bytes
    written = []

    def write_half(path, content):
        written.append(path)
        if step == "second write" and len(written) == 1:
            return real(path, content)
        real(path, content[:2])
        full_disk()

    with monkeypatch.context() as patch:
        if step == "rename":
            patch.setattr(os, "replace", full_disk)
        else:
            patch.setattr(pathlib.Path, "write_bytes", write_half)
        with pytest.raises(OSError, match="cannot write .*: No space left on device"):
            write_files({tmp_path / "a.png": b"new a", tmp_path / "sub/b.json": b"new b", tmp_path / "c": b"new"})
    assert files_in(tmp_path) == ["a.png", "sub/b.json"]
    assert {path: path.read_bytes() for path in old} == old

    write_files({tmp_path / "a.png": b"new a"})
    assert (tmp_path / "a.png").read_bytes() == b"new a"


def test_an_image_that_could_not_be_written_is_not_in_the_json(tmp_path, monkeypatch):
    exporter = Exporter(tmp_path, WORDS, tasks=TASKS, threshold=0.0)
    first, second = name_photos([pathlib.Path("a.jpg"), pathlib.Path("b.jpg")])
    exporter.keep(exporter.write(first, fake_result()))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            exporter.keep(exporter.write(second, fake_result()))
    exporter.finish()
    assert [image["id"] for image in read_json(tmp_path / "images.json")["images"]] == [1]
    assert len(read_json(tmp_path / "panoptic.json")["annotations"]) == 1
    assert len(read_json(tmp_path / "instances.json")) == 2
    assert not list(tmp_path.rglob("b.*")) + list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["n" * 251, "\u732b" * 83])
def test_long_names_can_be_written(tmp_path, name):
    """File systems allow 255 bytes; the names of outputs and temporary files must not be longer."""
    result = fake_result()
    exporter = Exporter(tmp_path, WORDS, tasks=["semantic"], threshold=0.5)
    first, second = name_photos([pathlib.Path(f"{name}.jpg"), pathlib.Path(f"{name}.png")])
    for photo in (first, second):
        exporter.keep(exporter.write(photo, Result(result.image, WORDS, None, result.semantic, None)))
    assert second.name == f"{first.name}-2" and name.startswith(first.name)
    assert len(list(tmp_path.glob("semantic/*.png"))) == 2
