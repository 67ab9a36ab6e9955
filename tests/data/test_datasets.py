"""The table of datasets by name."""

import json

import pytest

from fcclip_jax.data import decoding
from fcclip_jax.data.datasets import DATASETS, open_dataset
from tests.data import tiny


def as_layout(root, paths, layout, pngs):
    """Moves a tiny dataset to the place that the table gives."""
    for source, target in ((paths.images, layout.images), (paths.json, layout.json), (paths.pngs, pngs)):
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        source.rename(root / target)


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_layouts(tmp_path, name, split):
    layout = DATASETS[name][split]
    folder = {"coco_panoptic": "coco", "ade20k_panoptic": "ADEChallengeData2016"}[name]
    as_layout(tmp_path / folder, tiny.write(tmp_path / "data", 2), layout, layout.pngs[-1])
    for root in (tmp_path, tmp_path / folder):
        dataset = open_dataset(name, root, split)
        assert len(dataset) == 2 and dataset.vocabulary.name == layout.vocabulary


def test_real_coco(shared):
    for split, count in (("train", 11), ("val", 3)):
        dataset = open_dataset("coco_panoptic", shared / "samples", split)
        assert len(dataset) == count
        for index in range(count):
            record = dataset[index]
            image, segments = decoding.decode(record)
            assert image.shape[:2] == segments.segment_map.shape
            assert segments.categories.tolist() == record.segments[record.segments[:, 2] == 0, 1].tolist()


def test_official_ade20k_training_annotation(shared, tmp_path):
    """Reads the json of detectron2's preparation of ADE20K: image ids are words, categories count from 0."""
    golden = json.loads((shared / "golden/extra/ade_panoptic_prep.json").read_text())
    content = golden["ade"]["outputs"]["ade20k_panoptic_train.json"]
    folders = {"images/training": "jpg", "ade20k_panoptic_train": "png"}
    for folder, suffix in folders.items():
        (tmp_path / folder).mkdir(parents=True)
        for entry in content["images"]:
            (tmp_path / folder / f"{entry['id']}.{suffix}").write_bytes(b"")
    (tmp_path / "ade20k_panoptic_train.json").write_text(json.dumps(content))
    dataset = open_dataset("ade20k_panoptic", tmp_path)
    assert dataset[0].image_id == "ADE_train_00000001"
    expected = [
        [entry["id"], entry["category_id"], entry["iscrowd"]] for entry in content["annotations"][1]["segments_info"]
    ]
    assert dataset[1].segments.tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("coco", "x"),
            r"'coco' is not a dataset \(did you mean coco_panoptic\?\); choose one of coco_panoptic, ade20k_panoptic or custom",
        ),
        (("coco_panoptic", "/nowhere", "test"), "has no split 'test', only train, val"),
        (
            ("coco_panoptic", "/nowhere"),
            "coco_panoptic has no folder at /nowhere; give the folder that contains annotations/",
        ),
        (("coco_panoptic",), "coco_panoptic has no folder at None"),
        (("custom",), "needs images, panoptic_json and panoptic_pngs, or the root of a prepared dataset; got None"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        open_dataset(*arguments)
