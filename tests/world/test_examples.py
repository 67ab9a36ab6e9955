"""Images that are made up where a configuration's dataset is not."""

import cv2
import numpy as np
import pytest

from fcclip_jax.data import decoding
from fcclip_jax.data.datasets import is_at, open_dataset
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.training import train
from fcclip_jax.world import examples
from fcclip_jax.world.examples import ExampleDataset, write_examples
from fcclip_jax.world.panoptic import WorldDataset
from tests.training import tiny_runs


@pytest.mark.parametrize("name, vocabulary", [("coco_panoptic", "coco_panoptic"), ("ade20k_panoptic", "ade20k_150")])
def test_the_files_are_those_of_the_dataset(tmp_path, name, vocabulary):
    assert not is_at(name, tmp_path / "root")
    write_examples(name, {"train": 3, "val": 2}, tmp_path / "root")
    assert is_at(name, tmp_path / "root")
    for split, count in (("train", 3), ("val", 2)):
        written = open_dataset(name, tmp_path / "root", split)
        composed = ExampleDataset(split, count, Vocabulary.load(vocabulary))
        assert len(written) == count and written.vocabulary == Vocabulary.load(vocabulary)
        for index in range(count):
            image, segments = decoding.decode(written[index])
            expected_image, expected = decoding.decode(composed[index])
            assert written[index].image.startswith(b"\xff\xd8") and written[index].file_name.endswith(".jpg")
            np.testing.assert_array_equal(image, expected_image)
            np.testing.assert_array_equal(segments.segment_map, expected.segment_map)
            assert segments.categories.tolist() == expected.categories.tolist()


def test_things_stand_for_things_and_the_pixels_are_the_scenes():
    coco = Vocabulary.load("coco_panoptic")
    scenes, made = WorldDataset("train", 20, seen_only=False), ExampleDataset("train", 20, coco)
    thing = {entry.id: entry.is_thing for entry in coco.classes}
    world_thing = {entry.id: entry.is_thing for entry in scenes.vocabulary.classes}
    pairs = set()
    for index in range(20):
        scene, record = scenes[index], made[index]
        assert record.panoptic == scene.panoptic
        pairs |= set(zip(scene.segments[:, 1].tolist(), record.segments[:, 1].tolist(), strict=True))
        found, drawn = (
            cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_COLOR) for each in (record.image, scene.image)
        )
        # JPEG keeps the picture: a wrong channel order or another scene differs by tens.
        assert np.abs(found.astype(int) - drawn).mean() < 8
    assert all(thing[category] == world_thing[word] for word, category in pairs)
    assert len(pairs) == len({word for word, _ in pairs}) > 30


def test_a_root_without_the_dataset(tmp_path, monkeypatch, capsys):
    """An absent root, an empty one, and one with an empty folder or with other data."""
    monkeypatch.chdir(tmp_path)
    made = []
    monkeypatch.setattr(train, "write_examples", lambda *arguments: made.append(arguments))
    config = tiny_runs.load_config("coco", "debug")
    workdir = examples.epath.Path("run")
    for folder in (None, "datasets", "datasets/coco", "datasets/ADEChallengeData2016/images"):
        if folder:
            (tmp_path / folder).mkdir(parents=True)
        assert train._data_root(config, workdir) == workdir / "examples"
        assert "datasets has no coco_panoptic: training on 40 images of emoji" in capsys.readouterr().out
    assert made == [("coco_panoptic", {"train": 32, "val": 8}, workdir / "examples")] * 4


def test_a_root_with_the_dataset_or_a_part_of_it(tmp_path):
    config = tiny_runs.load_config("coco", "debug")
    config.data.root = str(tmp_path)
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    assert train._data_root(config, examples.epath.Path("run")) == str(tmp_path)
    with pytest.raises(FileNotFoundError, match="panoptic PNGs"):
        train.open_datasets(config)


def test_only_debug_makes_images(tmp_path):
    for name, variant in (("coco", ""), ("coco", "RN50"), ("custom", "debug"), ("world", "")):
        config = tiny_runs.load_config(name, variant)
        config.data.root = str(tmp_path / "nowhere")
        assert train._data_root(config, examples.epath.Path("run")) == str(tmp_path / "nowhere")
    assert tiny_runs.load_config("ade20k", "debug").data.examples == 32
