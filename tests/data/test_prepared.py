"""Writes and reads ArrayRecord shards, ours and those of TFDS' own builder, without importing TensorFlow."""

import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fcclip_jax.data import tfds_builder
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


@pytest.fixture
def small_shards(monkeypatch):
    """Three images a shard."""
    monkeypatch.setattr(tfds_builder, "IMAGES_PER_SHARD", 3)


@pytest.mark.usefixtures("small_shards")
def test_there_and_back(tmp_path):
    datasets = {
        "train": FolderDataset(*tiny.write(tmp_path / "train", 7)),
        "val": FolderDataset(*tiny.write(tmp_path / "val", 2, seed=1)),
    }
    output = tmp_path / "prepared"
    assert write_shards(datasets, output) == 9
    assert [path.name for path in sorted(output.glob("*array_record*"))] == [
        *(f"fcclip_panoptic-train.array_record-0000{index}-of-00003" for index in range(3)),
        "fcclip_panoptic-val.array_record-00000-of-00001",
    ]
    for split, dataset in datasets.items():
        prepared = open_dataset("custom", output, split)
        assert_same_records(prepared, dataset)
        assert prepared.vocabulary == dataset.vocabulary
        assert_same_records(pickle.loads(pickle.dumps(prepared)), dataset)  # as workers get it
    assert write_shards(datasets, output) == 0
    with pytest.raises(ValueError, match="other data, finished or not; empty it or choose another folder"):
        write_shards({"train": datasets["val"]}, output)
    with pytest.raises(ValueError, match="has no split 'test', only train, val"):
        PreparedDataset(output, "test")
    (output / "fcclip_panoptic-train.array_record-00001-of-00003").unlink()
    with pytest.raises(FileNotFoundError, match="00001-of-00003, one of the shards of"):
        PreparedDataset(output, "train")


@pytest.mark.usefixtures("small_shards")
def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    paths = tiny.write(tmp_path / "data", 7)
    dataset, output = FolderDataset(*paths), tmp_path / "prepared"
    lost = (paths.images / "005.jpg").rename(tmp_path / "lost.jpg")
    with pytest.raises(OSError, match="005.jpg"):
        write_shards({"train": dataset}, output)
    first = next(output.glob("*00000-of-00003"))
    written = first.stat().st_mtime_ns
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="other data"):
        patch.setattr(tfds_builder, "IMAGES_PER_SHARD", 4)
        write_shards({"train": dataset}, output)
    lost.rename(paths.images / "005.jpg")
    assert write_shards({"train": dataset}, output) == 4  # the first shard's three were there
    assert first.stat().st_mtime_ns == written and not list(output.glob("*.partial"))
    assert_same_records(PreparedDataset(output, "train"), dataset)


@pytest.mark.parametrize(
    ("ids", "message"),
    [((0, 5), "segment 0 of 000.jpg is out of range; .* 0 is void"), ((5, 5), "segment 5 of 000.jpg appears twice")],
)
def test_records_that_another_program_wrote_are_checked_too(tmp_path, ids, message):
    dataset = FolderDataset(*tiny.write(tmp_path / "data", 1))
    dataset._segments[:2, 0] = ids
    write_shards({"train": dataset}, tmp_path / "prepared")
    with pytest.raises(ValueError, match=message):
        PreparedDataset(tmp_path / "prepared", "train")[0]


def test_named_images(tmp_path):
    """ADE20K's image ids are words."""
    paths = tiny.write(tmp_path / "data", 2)

    def rename(content):
        for entry, annotation in zip(content["images"], content["annotations"], strict=True):
            entry["id"] = annotation["image_id"] = f"ADE_train_{entry['id']}"

    paths.edit(rename)
    dataset = FolderDataset(*paths)
    write_shards({"train": dataset}, tmp_path / "prepared")
    assert_same_records(PreparedDataset(tmp_path / "prepared", "train"), dataset)


class Coco(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The features of TFDS' own coco/2017_panoptic 1.1.0, over tiny data."""

    VERSION = tfds.core.Version("1.1.0")
    url_infos = {}  # noqa: RUF012

    def __init__(self, dataset, **options):
        self.dataset = dataset
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
        for index in range(len(self.dataset)):
            record = self.dataset[index]
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
    dataset = FolderDataset(*tiny.write(tmp_path / "data", 3))
    builder = Coco(dataset, data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare()
    prepared = open_dataset("coco_panoptic", builder.data_dir, "val")  # TFDS calls it validation
    assert prepared.vocabulary == Vocabulary.load("coco_panoptic")
    records = sorted((prepared[index] for index in range(3)), key=lambda record: record.image_id)  # TFDS shuffles
    assert_same_records(records, dataset)


@pytest.mark.usefixtures("small_shards")
def test_our_builder_is_a_builder(tmp_path):
    dataset = FolderDataset(*tiny.write(tmp_path / "data", 5))
    builder = tfds_builder.FcclipPanoptic(datasets={"train": dataset}, data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    assert_same_records(PreparedDataset(builder.data_dir, "train"), dataset)


def test_other_formats_and_datasets_are_refused(tmp_path):
    builder = Coco(None, data_dir=tmp_path, file_format="tfrecord")
    builder.info.set_splits(tfds.core.SplitDict([tfds.core.SplitInfo("validation", [1], 1)]))
    builder.info.write_to_directory(tmp_path)
    with pytest.raises(ValueError, match="has the format tfrecord, which has no random access"):
        PreparedDataset(tmp_path, "val")
