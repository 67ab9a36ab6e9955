"""Pascal Context 59 and 459: against the official scripts' results, and by hand."""

import json

import numpy as np
import pytest
import scipy.io
from pycocotools import mask as coco_mask

from fcclip_jax.data.annotations import pascal_context
from fcclip_jax.data.annotations.jobs import FOLDERS
from tests.data.annotating import annotate, golden, load, photo, refusal

# pycocotools' decoder has no NumPy 2 copy argument.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def code(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def write(root, named):
    """named: (name, phase, segments as (category, mask), the 459's map)."""
    voc = root / "VOCdevkit" / "VOC2010"
    (voc / "trainval").mkdir(parents=True)
    content = {"images": [], "annos_segmentation": []}
    for number, (name, phase, segments, label_map) in enumerate(named):
        height, width = label_map.shape
        photo(label_map.shape, voc / "JPEGImages" / f"{name}.jpg")
        scipy.io.savemat(voc / "trainval" / f"{name}.mat", {"LabelMap": label_map.astype(np.uint16)})
        image = {"image_id": 100 + number, "file_name": f"{name}.jpg", "phase": phase, "height": height, "width": width}
        content["images"].append(image)
        content["annos_segmentation"] += [
            {"image_id": 100 + number, "category_id": category, "segmentation": code(mask)}
            for category, mask in segments
        ]
    (voc / "trainval_merged.json").write_text(json.dumps(content))
    return voc


@pytest.fixture
def official(tmp_path):
    section, arrays = golden("ctx")
    named = []
    for split, folder in FOLDERS.items():
        for name in section["names"][folder]:
            numbers = arrays[f"ctx_{name}_label59_detail_mask"]
            segments = [(int(number), numbers == number) for number in np.unique(numbers) if number]
            named.append((name, split, segments, arrays[f"ctx_{name}_label459_mat"]))
    write(tmp_path, named)
    return tmp_path


def test_the_official_scripts_results(official):
    section, arrays = golden("ctx")
    assert annotate("pascal_context", official) == 0
    output, compared = official / "pascal_ctx_d2", 0
    for folder, names in section["names"].items():
        for name in names:
            for kind, suffix, dtype in (("ctx59", "png", np.uint8), ("ctx459", "tif", np.uint16)):
                ours = load(output / f"annotations_{kind}" / folder / f"{name}.{suffix}")
                assert ours.dtype == dtype
                np.testing.assert_array_equal(ours, arrays[f"ctx_{name}_{kind}"])
                compared += 1
            source = official / "VOCdevkit/VOC2010/JPEGImages" / f"{name}.jpg"
            assert (output / "images" / folder / f"{name}.jpg").read_bytes() == source.read_bytes()
    assert compared == 6
    assert section["labels"] == [0, *pascal_context.NUMBERS_59]


def test_by_hand(tmp_path):
    """Later segments cover earlier ones; images in the json's test set belong to no split."""
    left, top = np.array([[1, 1, 0], [1, 1, 0]]), np.array([[1, 1, 1], [0, 0, 0]])
    every = np.array([[0, 1, 459], [2, 2, 0]])
    named = [
        ("2010_000001", "val", [(2, left), (458, top)], every),
        ("2010_000002", "test", [(2, left)], every),
        ("2010_000003", "train", [], every),
    ]
    write(tmp_path, named)
    assert annotate("pascal_context", tmp_path / "VOCdevkit") == 0
    output = tmp_path / "pascal_ctx_d2"
    frequent = load(output / "annotations_ctx59/validation/2010_000001.png")
    np.testing.assert_array_equal(frequent, [[58, 58, 58], [0, 0, 255]])
    whole = load(output / "annotations_ctx459/validation/2010_000001.tif")
    np.testing.assert_array_equal(whole, [[65535, 0, 458], [1, 1, 65535]])
    assert (load(output / "annotations_ctx59/training/2010_000003.png") == 255).all()
    assert sorted(path.stem for path in output.rglob("*.jpg")) == ["2010_000001", "2010_000003"]


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_bad_sources(official, capsys):
    voc = official / "VOCdevkit" / "VOC2010"
    annotation, matlab = voc / "trainval_merged.json", voc / "trainval" / "2010_000009.mat"
    labels = pascal_context.read_label_map(matlab)
    mask = np.ones((2, 2), np.uint8)

    def segment(**change):
        return lambda path: edit(
            path, lambda content: [entry.update(change) for entry in content["annos_segmentation"]]
        )

    for path, spoil, message in (
        (annotation, lambda path: path.unlink(), "trainval_merged.json does not exist; unpack"),
        (annotation, lambda path: path.write_text("{"), "is not PASCAL in Detail's annotation"),
        (annotation, lambda path: path.write_text("[]"), "is not PASCAL in Detail's annotation"),
        (
            annotation,
            lambda path: edit(path, lambda content: content["images"].append(content["images"][0])),
            "the image 2010_000002.jpg is listed twice with the id 100",
        ),
        (annotation, lambda path: edit(path, lambda content: content.pop("images")), "'images' is missing"),
        (annotation, segment(image_id=7), ": 7 is missing"),
        (annotation, segment(category_id=3), "the category 3 is not one of the 59 classes"),
        (annotation, segment(category_id=459), "the category 459 is not one of the 59 classes"),
        (annotation, segment(segmentation=code(mask)), "a segment is 2x2 pixels, but the image "),
        (annotation, segment(segmentation={"size": [2, 2], "counts": [[1]]}), "has no valid run lengths"),
        (annotation, lambda path: edit(path, lambda content: content.update(images=[])), ": 1"),
        (
            annotation,
            lambda path: path.write_text('{"images": [], "annos_segmentation": []}'),
            "has no image with the phase 'val'",
        ),
        (matlab, lambda path: path.unlink(), "does not exist"),
        (matlab, lambda path: path.write_bytes(path.read_bytes()[:-20]), "cannot read the LabelMap"),
        (matlab, lambda path: scipy.io.savemat(path, {"Labels": labels}), "cannot read the LabelMap"),
        (matlab, lambda path: scipy.io.savemat(path, {"LabelMap": labels.astype(float)}), "not a map of 16-bit"),
        (matlab, lambda path: scipy.io.savemat(path, {"LabelMap": labels + np.uint16(460)}), "has the label"),
        (matlab, lambda path: scipy.io.savemat(path, {"LabelMap": labels[1:]}), "pixels, but its image"),
    ):
        kept = path.read_bytes()
        spoil(path)
        error = refusal("pascal_context", official, capsys, "val")
        assert message in error and str(path) in error
        assert not (official / "pascal_ctx_d2").exists()
        path.write_bytes(kept)
    assert annotate("pascal_context", official) == 0
