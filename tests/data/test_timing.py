"""The two implementations that the timing script compares give the same crops."""

from fcclip_jax.data import timing
from fcclip_jax.data.datasets import open_dataset
from fcclip_jax.data.folder import FolderDataset
from fcclip_jax.data.shards import write_shards
from tests.data import tiny


def test_both_ways_agree(tmp_path, capsys):
    write_shards({"train": FolderDataset(*tiny.write(tmp_path / "data", 3))}, tmp_path / "prepared")
    dataset = open_dataset("custom", tmp_path / "prepared")
    timing._compare(dataset, 48, 12)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last in [
        f"largest difference of a pixel: {off} of 255 levels; pixels in different segments: 0" for off in (0, 1)
    ]
    timing._watch_memory(dataset, 48, 20)
    counts = [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert counts == [4, 8, 12, 16, 20]
    assert 10 < timing._resident_mib() < 100_000


def test_a_missing_folder_is_one_sentence(capsys):
    assert timing.main(["coco_panoptic", "--root", "/nowhere"]) == 2
    error = "error: coco_panoptic has no folder at /nowhere; give the folder that contains annotations/panoptic_train2017.json\n"
    assert capsys.readouterr().err == error
