"""`fcclip prepare`."""

from fcclip_jax import cli
from fcclip_jax.data.datasets import open_dataset
from tests.data import tiny


def test_command_line(tmp_path, capsys):
    paths = tiny.write(tmp_path / "data", 2)
    options = ["--images", str(paths.images), "--json", str(paths.json), "--output", str(tmp_path / "out")]
    assert cli.main(["prepare", "custom", *options, "--pngs", str(paths.pngs)]) == 0
    assert "out contains 2 images; this run wrote 2 of them in " in capsys.readouterr().out
    assert len(open_dataset("custom", tmp_path / "out", "train")) == 2
    for arguments, message in (
        (["custom", *options], "a custom dataset needs --images, --json and --pngs, and no --root"),
        (["coco", *options], "coco needs --root, and no --images, --json or --pngs"),
        (["coco", "--root", str(tmp_path / "none"), *options[4:]], "coco_panoptic has no folder at"),
        (["coco", "--root", str(tmp_path), *options[4:]], "the folder of images"),
        (["coco", "--root", str(tmp_path), "--splits", "all", *options[4:]], "has no split 'all', only train, val"),
    ):
        assert cli.main(["prepare", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
