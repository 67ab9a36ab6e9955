"""ADE20K-847: against the official script's results, and by hand."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcclip_jax.data.annotations import ade20k_full
from fcclip_jax.data.annotations.jobs import FOLDERS
from fcclip_jax.text.vocabulary import Vocabulary
from tests.data.annotating import annotate, golden, load, photo, refusal, save

NAME = "ADE20K_2021_17_01"


def write(root, split, name, colors, scene="urban/street"):
    """Writes an image in the archive's layout: in its scene's folder, with unread masks of parts and instances."""
    folder = root / "images" / "ADE" / FOLDERS[split] / scene
    photo(colors.shape, folder / f"{name}.jpg")
    for suffix in ("_seg", "_parts_1"):
        save(np.dstack([colors, np.full(colors.shape[:2], 77, np.uint8)]), folder / f"{name}{suffix}.png")
    save(colors[..., 0], folder / name / "instance_000_ADE.png")
    return folder


@pytest.fixture
def official(tmp_path):
    section, arrays = golden("ade_full")
    for file in section["files"]:
        colors = arrays[f"adefull_{file['index']}_seg_rg"]
        write(tmp_path / NAME, file["split"], file["file"].removesuffix(".jpg"), colors, f"scene_{file['index']}")
    return tmp_path


def test_the_official_scripts_results(official):
    section, arrays = golden("ade_full")
    assert annotate("ade20k_full", official) == 0
    for file in section["files"]:
        folder, stem = FOLDERS[file["split"]], file["file"].removesuffix(".jpg")
        labels = load(official / NAME / "annotations_detectron2" / folder / f"{stem}.tif")
        assert labels.dtype == np.uint16
        np.testing.assert_array_equal(labels, arrays[f"adefull_{file['index']}_label847"])
        with Image.open(official / NAME / "images_detectron2" / folder / f"{stem}.jpg") as image:
            assert list(image.size) == file["image_out_wh"]
    assert len(section["files"]) == 4
    classes = ade20k_full.class_ids()
    table = {str(number): int(index) for number, index in enumerate(classes) if index != 65535}
    assert table == section["id_to_train_id"]


def test_by_hand(tmp_path):
    """Computes R's tens times 256, plus G: 2978 is a wall, 312 a building; 2977 and 0 belong to none of the 847."""
    numbers = np.array([[2978, 312, 3148], [2977, 0, 2978]])
    ones = np.array([[3, 9, 0], [1, 0, 7]])  # R's last digit is ignored
    colors = np.stack([numbers // 256 * 10 + ones, numbers % 256], axis=-1).astype(np.uint8)
    write(tmp_path / NAME, "val", "ADE_val_00000001", colors)
    assert annotate("ade20k_full", tmp_path / NAME, "val") == 0
    labels = load(tmp_path / NAME / "annotations_detectron2/validation/ADE_val_00000001.tif")
    np.testing.assert_array_equal(labels, [[0, 1, 846], [65535, 65535, 0]])
    names = [entry.name for entry in Vocabulary.load("ade20k_847").classes]
    assert [names[0], names[1], names[846]] == ["wall", "building", "adding machine"]


@pytest.mark.parametrize(
    ("shape", "resized"),
    [
        ((512, 4000), (512, 4000)),
        ((513, 513), (512, 512)),
        ((683, 1024), (512, 768)),
        ((1024, 683), (768, 512)),
        ((4000, 511), (4000, 511)),
        ((1024, 1025), (512, 512)),  # 512.5, to the even side
        ((1024, 1027), (512, 514)),  # 513.5
    ],
)
def test_sizes(shape, resized):
    assert ade20k_full.resized_shape(*shape) == resized


@given(source=st.integers(1, 3000), target=st.integers(1, 3000))
def test_labels_shrink_as_opencv_does_it(source, target):
    row = np.arange(source, dtype=np.int32)[None]
    expected = cv2.resize(row, (target, 1), interpolation=cv2.INTER_NEAREST)[0]
    np.testing.assert_array_equal(ade20k_full.nearest(source, target), expected)


def test_images_shrink_bilinearly(tmp_path):
    """Shrinks without anti-aliasing, by weights written out here; OpenCV's weights have 11 bits."""
    folder = write(tmp_path, "val", "ADE_val_00000001", np.zeros((600, 900, 2), np.uint8))
    image = folder / "ADE_val_00000001.jpg"
    shrunk, _ = ade20k_full.convert(image, image.with_name("ADE_val_00000001_seg.png")).contents

    def weights(old, new):
        centers = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        return np.maximum(1 - np.abs(centers[:, None] - np.arange(old)), 0)

    expected = np.einsum("yh,xw,hwc->yxc", weights(600, 512), weights(900, 768), load(image), optimize=True)
    np.testing.assert_allclose(shrunk, expected, atol=1)


def test_small_images_keep_their_size_but_are_written_anew(tmp_path):
    folder = write(tmp_path / NAME, "train", "ADE_train_00000001", np.zeros((40, 60, 2), np.uint8))
    assert annotate("ade20k_full", tmp_path, "train") == 0
    buffer = io.BytesIO()
    Image.fromarray(load(folder / "ADE_train_00000001.jpg")).save(buffer, "JPEG")
    written = tmp_path / NAME / "images_detectron2/training/ADE_train_00000001.jpg"
    assert written.read_bytes() == buffer.getvalue()


def test_where_the_official_script_wants_its_source(tmp_path):
    """Reads the source from ade/, and writes the results where evaluation reads them."""
    colors = np.zeros((4, 5, 2), np.uint8)
    for present in (False, True):
        root = tmp_path / str(present)
        write(root / "ade" / NAME, "val", "ADE_val_00000001", colors)
        if present:
            (root / NAME).mkdir()
        assert annotate("ade20k_full", root, "val") == 0
        assert (root / NAME / "annotations_detectron2/validation/ADE_val_00000001.tif").exists()
        assert not list((root / "ade").rglob("*.tif"))


def test_no_pickle_is_read(official):
    (official / NAME / "index_ade20k.pkl").write_bytes(b"cos\nabort\n(tR.")
    assert annotate("ade20k_full", official) == 0


def test_bad_sources(official, capsys):
    root = official / NAME
    assert "nowhere/ADE20K_2021_17_01/images/ADE/training does not exist" in refusal(
        "ade20k_full", official / "nowhere", capsys
    )
    folder = root / "images" / "ADE" / "validation" / "scene_1"
    annotation, image = folder / "ADE_val_00000002_seg.png", folder / "ADE_val_00000002.jpg"
    colors = load(annotation)
    for path, spoil, message in (
        (annotation, lambda path: path.unlink(), "does not exist"),
        (annotation, lambda path: path.write_bytes(path.read_bytes()[:-50]), "cannot read"),
        (annotation, lambda path: save(colors[..., 0], path), "is not an RGB image"),
        (annotation, lambda path: save(colors[1:], path), "pixels, but its image"),
        (image, lambda path: path.write_bytes(path.read_bytes()[:-50]), "cannot read"),
    ):
        kept = path.read_bytes()
        spoil(path)
        error = refusal("ade20k_full", official, capsys, "val")
        assert message in error and str(path) in error
        path.write_bytes(kept)
    for path in (image, annotation):
        (folder.parent / "scene_3" / path.name).write_bytes(path.read_bytes())
    error = refusal("ade20k_full", official, capsys, "val")
    assert "have the same name; remove" in error and "scene_1" in error and "scene_3" in error
