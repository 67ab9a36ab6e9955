"""The benchmark's two ways give the same, so that it compares like with like."""

import numpy as np

from fcclip_jax.data import timing as bench
from fcclip_jax.data.datasets import open_dataset
from fcclip_jax.data.folder import FolderDataset
from fcclip_jax.data.shards import prepare
from tests.data import tiny


def test_both_ways_agree(tmp_path, capsys):
    prepare({"train": FolderDataset(*tiny.write(tmp_path / "data", 3))}, tmp_path / "prepared")
    source = open_dataset("custom", tmp_path / "prepared")
    bench._compare(source, 48, 12)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] in [f"largest difference of a pixel {off} (of 255), pixels of other segments 0" for off in (0, 1)]
    bench._watch_memory(source, 48, 20)
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert np.isfinite(bench._resident_mib())


def test_a_missing_folder_is_one_sentence(capsys):
    assert bench.main(["coco_panoptic", "--root", "/nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
