"""`fcclip prepare world`: the folder that configs/custom.py reads."""

import json

import numpy as np
import pytest

from fcclip_jax import cli
from fcclip_jax.data import decoding
from fcclip_jax.data.datasets import open_dataset
from fcclip_jax.training.train import open_datasets
from fcclip_jax.world.panoptic import WorldDataset
from tests.training import tiny_runs

SIZES = ["--train-images", "5", "--val-images", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "custom"
    assert cli.main(["prepare", "world", "--output", str(folder), *SIZES]) == 0
    return folder


def paths(folder, split: str) -> dict[str, str]:
    return {
        "images": str(folder / split),
        "panoptic_json": str(folder / f"panoptic_{split}.json"),
        "panoptic_pngs": str(folder / f"panoptic_{split}"),
    }


def test_the_folder_reads_back_equal(folder):
    for split, size in (("train", 5), ("val", 2)):
        written = open_dataset("custom", split=split, **paths(folder, split))
        composed = WorldDataset(split, size, seen_only=False)
        assert len(written) == size and written.vocabulary.classes == composed.vocabulary.classes
        for index in range(size):
            image, segments = decoding.decode(written[index])
            expected_image, expected = decoding.decode(composed[index])
            assert np.array_equal(image, expected_image)
            assert np.array_equal(segments.segment_map, expected.segment_map)
            assert segments.categories.tolist() == expected.categories.tolist()
            areas = np.bincount(expected.segment_map.ravel())
            assert written.areas(index).tolist() == areas.tolist()


def test_the_custom_configuration_opens_it(folder):
    config = tiny_runs.load_config("custom")
    for split in ("train", "val"):
        config.data[split].update(paths(folder, split))
        # The template's own paths differ in the parent folder alone.
        template = tiny_runs.load_config("custom").data[split]
        assert {name: value.replace("datasets/custom", str(folder)) for name, value in template.items()} == paths(
            folder, split
        )
    train, val = open_datasets(config)
    assert (len(train), len(val)) == (5, 2)


def test_a_repeated_command_writes_what_is_missing(folder, capsys):
    content = (folder / "train" / "000003.png").read_bytes()
    (folder / "train" / "000003.png").unlink()
    (folder / "panoptic_train.json").unlink()
    assert cli.main(["prepare", "world", "--output", str(folder), *SIZES]) == 0
    assert "custom contains 7 images; this run wrote 1 of them in " in capsys.readouterr().out
    assert (folder / "train" / "000003.png").read_bytes() == content
    assert len(json.loads((folder / "panoptic_train.json").read_text())["annotations"]) == 5


def test_refusals(folder, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    out = ["--output", str(tmp_path / "out")]
    for arguments, message in (
        (["world", "--root", "x", *out], "the dataset world is composed, not read: it needs no --root"),
        (["world", "--images", "x", *out], "the dataset world is composed, not read: it needs no --root"),
        (["world", "--val-images", "0", *out], "--train-images and --val-images must be at least 1"),
        (["world", "--designs", "noto", *out], "the miniature world has no designs 'noto'; choose one of training"),
        (["world", "--output", str(tmp_path / "full")], "contains other files; choose an empty folder"),
        (["world", "--output", str(folder)], "contains other data, finished or not; empty it or choose another"),
        (
            ["coco", "--root", "x", "--designs", "training", *out],
            "--train-images, --val-images and --designs are for the dataset world, not coco",
        ),
    ):
        assert cli.main(["prepare", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
