"""Names in annotations, however they are written, and the files that they name."""

import unicodedata

import pytest
from etils import epath

from fcclip_jax.data.file_names import FileNames, list_files, stem_of
from fcclip_jax.data.folder import FolderDataset
from tests.data import tiny

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


def found(tmp_path, *files, folder="images", **options):
    """Writes empty files below a folder and returns a function that finds them by name."""
    parent = epath.Path(tmp_path) / folder
    for file in files:
        (parent / file).parent.mkdir(parents=True, exist_ok=True)
        (parent / file).write_bytes(b"")
    names = FileNames(parent, list_files(parent, "images"), **options)

    def find(name):
        path = names.find(name, "the json")
        return path and path.relative_to(parent).as_posix()

    return find


@pytest.mark.parametrize(
    ("file", "written"),
    [
        ("x/a.jpg", "x\\a.jpg"),
        ("x\\a.jpg", "x/a.jpg"),
        ("a.jpg", "./a.jpg"),
        ("a.jpg", ".\\a.jpg"),
        ("x/a.jpg", "x//./a.jpg"),
        ("a.jpg", "images/a.jpg"),
        ("x/a.jpg", "images/x/a.jpg"),
        ("x/a.jpg", "images\\a.jpg"),
        (f"{COMPOSED}/a.jpg", f"{DECOMPOSED}/a.jpg"),
        (f"{DECOMPOSED}.jpg", f"{COMPOSED}.jpg"),
        ("x/y/a.jpg", "a.jpg"),
    ],
)
def test_a_name_that_is_written_otherwise(tmp_path, file, written):
    find = found(tmp_path, file, "b.jpg")
    assert find(written) == file
    assert find(file) == file


def test_the_folders_above_may_be_in_front(tmp_path):
    find = found(tmp_path, "a.jpg", folder="val/images")
    assert find("val/images/a.jpg") == "a.jpg"
    assert find(f"{tmp_path}/val/images/a.jpg") == "a.jpg"
    # Those are in other folders.
    assert find("train/images/a.jpg") is None and find("val/a.jpg") is None and find("../images/a.jpg") is None


def test_the_name_below_the_folder_comes_first(tmp_path):
    find = found(tmp_path, "a.jpg", "x/a.jpg", "images/a.jpg", f"{COMPOSED}.jpg", f"{DECOMPOSED}.jpg")
    for name in ("a.jpg", "x/a.jpg", "images/a.jpg", f"{COMPOSED}.jpg", f"{DECOMPOSED}.jpg"):
        assert find(name) == name


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        (
            ("x/a.jpg", "y/z/a.jpg"),
            "a.jpg",
            "the json names a.jpg, which may be x/a.jpg or y/z/a.jpg in .*images; write",
        ),
        (("x/y/a.jpg", "x\\y/a.jpg"), "x\\y\\a.jpg", r"which may be x/y/a.jpg or x\\y/a.jpg in"),
        # The two look the same.
        (
            (f"{COMPOSED}{COMPOSED}", f"{DECOMPOSED}{DECOMPOSED}"),
            COMPOSED + DECOMPOSED,
            r"which may be '(e\\u0301){2}' or '(\\xe9){2}' in",
        ),
    ],
)
def test_a_name_of_two_files_is_refused(tmp_path, files, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        found(tmp_path, *files)(name)
    assert "\n" not in str(caught.value)


def test_stems(tmp_path):
    find = found(tmp_path, "x/0.png", "1.png", "1.tif", "a.b.png", key=stem_of)
    assert (find("x/0"), find("0"), find("a.b"), find("a")) == ("x/0.png", "x/0.png", "a.b.png", None)
    with pytest.raises(ValueError, match=r"names 1, which may be 1.png or 1.tif in"):
        find("1")


def test_listing_follows_links_once_and_real_folders_first(tmp_path):
    folder = tmp_path / "images"
    for path in ("b/x.jpg", "b/deep/y.jpg", ".cache/x.jpg", "b/.x.jpg"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.JPG").write_bytes(b"")
    (folder / "a").symlink_to(folder / "b")  # the folder's own path stays
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "loop").symlink_to(folder)
    (tmp_path / "elsewhere" / "back").symlink_to(folder / "b")
    assert list_files(epath.Path(folder), "images") == ["b/deep/y.jpg", "b/x.jpg", "c/z.JPG"]
    assert list_files(epath.Path(folder), "images", {".png"}) == []


def test_a_dataset_with_names_from_windows(tmp_path):
    paths = tiny.write(tmp_path, 2)
    (paths.images / "x").mkdir()
    (paths.images / "001.jpg").rename(paths.images / "x" / f"{DECOMPOSED}.jpg")

    def rename(content):
        content["images"][0]["file_name"] = "images\\000.jpg"
        content["images"][1]["file_name"] = f".\\x\\{COMPOSED}.jpg"
        content["annotations"][0]["file_name"] = "pngs/000.png"

    paths.edit(rename)
    dataset = FolderDataset(*paths)
    assert [path.relative_to(paths.images).as_posix() for path in dataset.image_paths] == [
        "000.jpg",
        f"x/{DECOMPOSED}.jpg",
    ]
    assert dataset[1].image == (paths.images / "x" / f"{DECOMPOSED}.jpg").read_bytes()
