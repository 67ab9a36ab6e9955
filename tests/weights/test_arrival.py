"""Weights by name from the download to the loaded model, with the real conversion in its own process."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy

from convert.__main__ import main as convert
from fcclip_jax import checkpoint, cli, weights
from fcclip_jax.evaluation.clips import open_clip
from fcclip_jax.evaluation.evaluate import open_model
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.text.vocabulary import Vocabulary
from fcclip_jax.weights import store
from tests.convert.tiny import model_description, official_tensors
from tests.weights.conftest import run

FPN = "sem_seg_head.pixel_decoder.layer_1.weight"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def fpn_of(model):
    """A weight of the head in PyTorch's layout."""
    return np.asarray(model.pixel_decoder.fpn.conv.weight[...]).transpose(3, 2, 0, 1)


def test_heads_and_clip_from_the_hub(tiny, service, contents):
    pytest.importorskip("huggingface_hub", reason="downloads from the hub (extra: weights)")
    # HF_ENDPOINT and HF_HOME count, because this is a new process.
    code, out, said = run("weights", "get", "tiny_heads")
    folder = tiny / "tiny_heads"
    assert (code, out) == (0, f"tiny_heads: heads\n  {folder}\n  licence: MIT\n  Somebody has a patent.\n"), said
    assert said.splitlines() == [
        f"downloading tiny_heads: heads.safetensors, 0.304 MB, from {service.address}; licence: MIT",
        f"downloading tiny_clip: clip.safetensors, 0.0722 MB, from {service.address}; licence: MIT",
        "converting tiny_heads",
        f"tiny_heads is ready in {folder} (sha256 {sha256(contents['heads'])}, recorded now, to compare later files with)",
    ]
    record = json.loads((folder / "fcclip.json").read_text())
    assert record["source"] == {
        "name": "heads.safetensors, https://huggingface.co/tests/tiny/resolve/main/heads.safetensors",
        "sha256": sha256(contents["heads"]),
    }
    assert record["clip_source"] == {"name": "clip.safetensors", "sha256": sha256(contents["clip"])}
    opened = open_model("tiny_heads")
    tensors = official_tensors(model_description("convnext"))
    np.testing.assert_array_equal(fpn_of(opened.model), tensors[FPN])
    scale = np.asarray(opened.model.clip.logit_scale[...])
    np.testing.assert_array_equal(scale, tensors["backbone.clip_model.logit_scale"])
    np.testing.assert_array_equal(np.asarray(open_clip("tiny_heads").clip.logit_scale[...]), scale)
    # Offline, what is here is loaded, and CLIP alone converts from the hub's cache.
    code, _, said = run("weights", "get", "tiny_clip", HF_HUB_OFFLINE="1")
    assert code == 0 and "downloading" not in said, said
    assert checkpoint.read(weights.find("tiny_clip")).source.sha256 == sha256(contents["clip"])
    assert len(service.downloads()) == 2


def test_a_file_from_elsewhere_and_what_the_list_says(tiny, service, contents, tmp_path, capsys, monkeypatch):
    file = tmp_path / "browser.safetensors"
    file.write_bytes(contents["whole"])
    assert cli.main(["weights", "get", "tiny_drive", "--file", str(file)]) == 0
    assert file.exists() and not service.seen
    loaded = Segmenter.load("tiny_drive")
    assert loaded.training_vocabulary == Vocabulary.load("coco_panoptic")
    capsys.readouterr()
    assert cli.main(["weights", "get", "tiny_drive", "--file", str(file)]) == 2
    assert capsys.readouterr().err == (
        f"error: tiny_drive is here already, in {tiny / 'tiny_drive'}; convert {file} in its place with --overwrite\n"
    )
    assert cli.main(["weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0]: line.split()[-1] for line in lines[1:6]} == {
        "tiny_drive": "yes",
        "tiny_hub": "no",
        "tiny_clip": "no",
        "tiny_heads": "no",
        "tiny_wrong": "no",
    }
    assert lines[-1] == "PQ is what the authors report, in percent. Somebody has a patent."
    # A path wins over a name.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_drive").mkdir()
    assert str(weights.find("tiny_drive")) == str(tmp_path / "tiny_drive")


def test_a_file_that_does_not_convert(tiny, service, contents, tmp_path, capsys):
    file = tmp_path / "clip.safetensors"
    file.write_bytes(contents["clip"])
    assert cli.main(["weights", "get", "tiny_hub", "--file", str(file)]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(f"error: tiny_hub does not convert: {file} contains no FC-CLIP; convert a CLIP alone with `")
    )
    assert not store.folder("tiny_hub").exists() and store.read_record("tiny_hub") is None
    folder = tmp_path / "error: one"  # the reason begins before it
    folder.mkdir()
    (folder / "tiny.pth").write_text("no weights")
    assert cli.main(["weights", "get", "tiny_hub", "--file", str(folder / "tiny.pth")]) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == f"error: tiny_hub does not convert: {folder}/tiny.pth is not a PyTorch file, or is truncated; download or save it again"
    )


def test_names_that_do_not_exist(tiny, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"\(did you mean tiny_drive\?\); `fcclip weights` lists the names"):
        weights.find("tiny_driv")
    assert str(weights.find("runs/model")) == str(tmp_path / "runs" / "model")  # the reader reports it
    assert cli.main(["weights", "get", "tiny_driv"]) == 2
    assert capsys.readouterr().err == (
        "error: no weights have the name 'tiny_driv' (did you mean tiny_drive?); `fcclip weights` lists the names\n"
    )


def test_a_module_of_the_working_folder_does_not_run(tiny, contents, tmp_path, monkeypatch):
    """The conversion is a process of its own; a user may have a convert.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "convert.py").write_text("open('ran', 'w')")
    (tmp_path / "whole.safetensors").write_bytes(contents["whole"])
    assert cli.main(["weights", "get", "tiny_drive", "--file", "whole.safetensors"]) == 0
    assert not (tmp_path / "ran").exists() and (tiny / "tiny_drive" / "fcclip.json").exists()


def test_a_name_wherever_a_checkpoint_is_expected(tiny, contents, tmp_path, capsys):
    (tmp_path / "whole.safetensors").write_bytes(contents["whole"])
    assert cli.main(["weights", "get", "tiny_drive", "--file", str(tmp_path / "whole.safetensors")]) == 0
    back = tmp_path / "back.safetensors"
    assert convert(["torch", "--checkpoint", "tiny_drive", "--output", str(back)]) == 0
    assert set(safetensors.numpy.load_file(back)) == set(official_tensors(model_description("convnext")))
    capsys.readouterr()
    assert cli.main(["weights", "push", "tiny_drive", "me/model", "--licence", "mit", "--dry-run"]) == 0
    assert "| converted from | `tiny.safetensors, https://drive.google.com/" in capsys.readouterr().out


def test_a_clip_alone_is_refused_before_its_download(tiny, service):
    with pytest.raises(ValueError, match="tiny_clip is a CLIP alone, .* train a head with --config.init=tiny_clip"):
        Segmenter.load("tiny_clip")
    assert not service.seen
