"""Writing ArrayRecord shards and reading them, ours and those of TFDS' own builder; TensorFlow stays out."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fcclip_jax import cli
from fcclip_jax.data import tfds_builder as coco_tfds
from fcclip_jax.data.datasets import open_dataset
from fcclip_jax.data.folder import FolderDataset
from fcclip_jax.data.prepared import PreparedDataset
from fcclip_jax.data.shards import write_shards
from fcclip_jax.text.vocabulary import Vocabulary
from tests.data import tiny


def assert_same_records(ours, theirs):
    assert len(ours) == len(theirs)
    for index in range(len(ours)):
        one, other = ours[index], theirs[index]
        assert one[:4] == other[:4]
        np.testing.assert_array_equal(one.segments, other.segments)


def test_there_and_back(tmp_path):
    sources = {
        "train": FolderDataset(*tiny.write(tmp_path / "train", 7)),
        "val": FolderDataset(*tiny.write(tmp_path / "val", 2, seed=1)),
    }
    output = tmp_path / "prepared"
    assert write_shards(sources, output, images_per_shard=3) == 9
    assert [path.name for path in sorted(output.glob("*array_record*"))] == [
        *(f"fcclip_panoptic-train.array_record-0000{index}-of-00003" for index in range(3)),
        "fcclip_panoptic-val.array_record-00000-of-00001",
    ]
    for split, source in sources.items():
        prepared = open_dataset("custom", output, split)
        assert_same_records(prepared, source)
        assert prepared.vocabulary == source.vocabulary
        assert_same_records(pickle.loads(pickle.dumps(prepared)), source)  # as workers get it
    assert write_shards(sources, output, images_per_shard=3) == 0
    with pytest.raises(ValueError, match="other data; empty it or choose another folder"):
        write_shards({"train": sources["val"]}, output, images_per_shard=3)
    with pytest.raises(ValueError, match="has no split 'test', only train, val"):
        PreparedDataset(output, "test")
    (output / "fcclip_panoptic-train.array_record-00001-of-00003").unlink()
    with pytest.raises(FileNotFoundError, match="00001-of-00003, one of the shards of"):
        PreparedDataset(output, "train")


def test_it_goes_on_where_it_stopped(tmp_path):
    paths = tiny.write(tmp_path / "data", 7)
    source, output = FolderDataset(*paths), tmp_path / "prepared"
    lost = (paths.images / "005.jpg").rename(tmp_path / "lost.jpg")
    with pytest.raises(OSError, match="005.jpg"):
        write_shards({"train": source}, output, images_per_shard=3)
    first = next(output.glob("*00000-of-00003"))
    written = first.stat().st_mtime_ns
    with pytest.raises(ValueError, match="other data"):
        write_shards({"train": source}, output, images_per_shard=4)
    lost.rename(paths.images / "005.jpg")
    assert write_shards({"train": source}, output, images_per_shard=3) == 4  # the first shard's three were there
    assert first.stat().st_mtime_ns == written and not list(output.glob("*.partial"))
    assert_same_records(PreparedDataset(output, "train"), source)


def test_named_images(tmp_path):
    """ADE20K's image ids are words."""
    paths = tiny.write(tmp_path / "data", 2)

    def rename(content):
        for entry, annotation in zip(content["images"], content["annotations"], strict=True):
            entry["id"] = annotation["image_id"] = f"ADE_train_{entry['id']}"

    paths.edit(rename)
    source = FolderDataset(*paths)
    write_shards({"train": source}, tmp_path / "prepared")
    assert_same_records(PreparedDataset(tmp_path / "prepared", "train"), source)


class Coco(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The features of TFDS' own coco/2017_panoptic 1.1.0, over tiny data."""

    VERSION = tfds.core.Version("1.1.0")
    url_infos = {}  # noqa: RUF012

    def __init__(self, source, **options):
        self.source = source
        super().__init__(**options)

    def _info(self):
        objects = {
            "id": np.int64,
            "area": np.int64,
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(num_classes=133),
            "is_crowd": np.bool_,
        }
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "panoptic_image": tfds.features.Image(encoding_format="png"),
            "panoptic_image/filename": tfds.features.Text(),
            "panoptic_objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples()}

    def _generate_examples(self):
        for index in range(len(self.source)):
            record = self.source[index]
            # Labels count categories: 3, 7 and 9 of the fixture are COCO's car, train and boat.
            label = {3: 2, 7: 6, 9: 8}
            yield (
                record.file_name,
                {
                    "image": record.image,
                    "image/filename": record.file_name,
                    "image/id": record.image_id,
                    "panoptic_image": record.panoptic,
                    "panoptic_image/filename": f"{record.image_id}.png",
                    "panoptic_objects": [
                        {
                            "id": id,
                            "area": 1,
                            "bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
                            "label": label[category],
                            "is_crowd": bool(crowd),
                        }
                        for id, category, crowd in record.segments.tolist()
                    ],
                },
            )


def test_what_tfds_itself_prepares(tmp_path):
    source = FolderDataset(*tiny.write(tmp_path / "data", 3))
    builder = Coco(source, data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare()
    prepared = open_dataset("coco_panoptic", builder.data_dir, "val")  # TFDS calls it validation
    assert prepared.vocabulary == Vocabulary.load("coco_panoptic")
    records = sorted((prepared[index] for index in range(3)), key=lambda record: record.image_id)  # TFDS shuffles
    assert_same_records(records, source)


def test_our_builder_is_a_builder(tmp_path):
    source = FolderDataset(*tiny.write(tmp_path / "data", 3))
    builder = coco_tfds.FcclipPanoptic(sources={"train": source}, images_per_shard=2, data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    assert_same_records(PreparedDataset(builder.data_dir, "train"), source)


def test_other_formats_and_datasets_are_refused(tmp_path):
    builder = Coco(None, data_dir=tmp_path, file_format="tfrecord")
    builder.info.set_splits(tfds.core.SplitDict([tfds.core.SplitInfo("validation", [1], 1)]))
    builder.info.write_to_directory(tmp_path)
    with pytest.raises(ValueError, match="in the format tfrecord, which has no random access"):
        PreparedDataset(tmp_path, "val")


def test_command_line(tmp_path, capsys):
    paths = tiny.write(tmp_path / "data", 2)
    options = ["--images", str(paths.images), "--json", str(paths.json), "--output", str(tmp_path / "out")]
    assert cli.main(["prepare", "custom", *options, "--pngs", str(paths.pngs)]) == 0
    assert "2 images are in" in capsys.readouterr().out
    assert len(open_dataset("custom", tmp_path / "out", "train")) == 2
    for arguments, message in (
        (["custom", *options], "given by --images, --json and --pngs, all three"),
        (["coco", *options], "coco is given by its --root"),
        (["coco", "--root", str(tmp_path / "none"), *options[4:]], "there is no folder of coco_panoptic at"),
        (["coco", "--root", str(tmp_path), *options[4:]], "there is no folder of images at"),
        (["coco", "--root", str(tmp_path), "--splits", "all", *options[4:]], "has no split 'all', only train, val"),
    ):
        assert cli.main(["prepare", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1


def test_tensorflow_stays_out():
    code = (
        "import sys, fcclip_jax.data.shards, fcclip_jax.data.prepared, fcclip_jax.data.pipeline;"
        "print(*sorted({'tensorflow', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
