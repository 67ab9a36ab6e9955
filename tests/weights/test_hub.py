"""Checkpoints on the Hugging Face hub, with its own client and a server on the loopback."""

import argparse
import builtins
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from fcclip_jax import checkpoint
from fcclip_jax.commands import weights_push
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.weights import hub, publish
from tests.test_checkpoint import contents
from tests.weights.hub_server import READER, TOKEN, Hub, running

ROOT = pathlib.Path(__file__).parents[2]

# The client reads its environment when it is imported, so each environment needs a process. A call prints its result or error.
CHILD = """
import json, os, sys
from fcclip_jax.commands import weights_push
from fcclip_jax.weights import hub
import argparse
parser = argparse.ArgumentParser()
weights_push.add_push(parser.add_subparsers())
for call, *arguments in json.loads(sys.argv[1]):
    try:
        if call == "log in":
            os.environ["HF_TOKEN"] = arguments[0]
        elif call == "fetch":
            print(json.dumps(os.fspath(hub.fetch_checkpoint(*arguments))))
        elif call == "push":
            parsed = parser.parse_args(["push", *arguments])
            parsed.action(parsed)
    except (OSError, ValueError) as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def child(server: Hub, home: pathlib.Path, *calls: tuple[str, ...], **environment: str) -> list[str]:
    """Runs calls of CHILD, and returns what they print."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": server.address, "HF_HUB_DISABLE_XET": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(calls)],
        cwd=ROOT,
        env={**inherited, "NO_PROXY": "127.0.0.1", **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def server():
    server = Hub()
    with running(server):
        yield server


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    checkpoint.save(path, contents())
    return path


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_pushed_and_loaded_back(server, saved, tmp_path):
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"benchmark": "ade20k", "evaluated": 2000, "scores": {"pq": 26.84, "miou": None}}))
    push = ("push", str(saved), "me/model", "--licence", "Apache-2.0")
    pushed = child(server, tmp_path, (*push, "--private", "--report", str(report)), HF_TOKEN=TOKEN)
    assert pushed[1:] == ['load it with Segmenter.load("hf://me/model")'], pushed
    [created] = server.created
    # Older clients ask for the same in another way.
    assert created["name"] == "model" and (created.get("visibility") == "private" or created.get("private") is True)
    stored = server.repositories["me/model"]["main"]
    card = stored["README.md"].decode()
    assert "| ade20k | 2000 | 26.8 | - | - |" in card and 'Segmenter.load("hf://me/model")' in card
    assert {name: data for name, data in stored.items() if name not in ("README.md", ".gitattributes")} == files_of(
        saved
    )
    assert server.large, "the larger files are uploaded apart"

    # Another checkpoint in a branch leaves none of the first one's files there.
    other = contents()._replace(parameters={name: array + 1 for name, array in contents().parameters.items()})
    checkpoint.save(tmp_path / "other", other)
    again = (
        "push",
        str(tmp_path / "other"),
        "me/model",
        "--licence",
        "apache-2.0",
        "--revision",
        "v/2",
        "--message",
        "Two",
    )
    assert child(server, tmp_path, again, HF_TOKEN=TOKEN)[1:] == ['load it with Segmenter.load("hf://me/model@v/2")']
    branch = server.repositories["me/model"]["v/2"]
    assert {name for name in branch if name.startswith("params/")} == {
        name for name in files_of(tmp_path / "other") if name.startswith("params/")
    }
    assert server.repositories["me/model"]["main"] == stored and server.messages[-1] == "Two"
    assert "No figures were given." in branch["README.md"].decode()

    # Both load back to the same bits.
    main, second = map(
        json.loads, child(server, tmp_path / "home", ("fetch", "hf://me/model"), ("fetch", "hf://me/model@v/2"))
    )
    for folder, parameters in ((main, contents().parameters), (second, other.parameters)):
        assert folder.startswith(str(tmp_path / "home"))
        read = checkpoint.read(folder).parameters
        for name, array in parameters.items():
            np.testing.assert_array_equal(read[name], array)
    assert "README.md" not in server.downloads

    # They are downloaded once; without a connection, or with a hub that fails, the cache serves.
    number = len(server.downloads)
    calls = (("fetch", "hf://me/model"), ("fetch", "hf://me/model@v/2"), ("fetch", "hf://me/model@nowhere"))
    found = child(server, tmp_path / "home", *calls, HF_HUB_OFFLINE="1")
    assert list(map(json.loads, found[:2])) == [main, second]
    kind, sentence = json.loads(found[2])
    assert kind == "OSError" and sentence == (
        f"hf://me/model@nowhere cannot be downloaded: it is not in {tmp_path}/home/hub, and HF_HUB_OFFLINE forbids connections;"
        " unset HF_HUB_OFFLINE"
    )
    server.broken = True
    assert child(server, tmp_path / "home", calls[0]) == found[:1]
    assert len(server.downloads) == number


def test_what_cannot_be_loaded(server, saved, tmp_path):
    server.add("me/model", files_of(saved))
    server.add("me/text", {"README.md": b"hello"})
    server.add("me/gated", {})
    server.gated.add("me/gated")
    host = server.address
    expected = {
        "hf://me/nothing": (
            "FileNotFoundError",
            f"{host} has no repository me/nothing that you may read; check the name, or log in with"
            + " `hf auth login` if it is private",
        ),
        "hf://me/model@v9": (
            "FileNotFoundError",
            f"me/model has no revision v9; its branches and tags are listed at {host}/me/model/tree/main",
        ),
        "hf://me/gated": (
            "OSError",
            f"access to me/gated is granted on request; ask for it at {host}/me/gated, and log in with `hf auth login`",
        ),
    }
    found = child(server, tmp_path, *(("fetch", url) for url in (*expected, "hf://me/text")))
    assert list(map(json.loads, found)) == [
        *([kind, f"{url} cannot be downloaded: {reason}"] for url, (kind, reason) in expected.items()),
        [
            "FileNotFoundError",
            "hf://me/text is not a checkpoint of fcclip_jax: the repository has no fcclip.json",
        ],
    ]
    closed = Hub()
    with running(closed):
        pass
    kind, sentence = json.loads(child(closed, tmp_path, ("fetch", "hf://me/model"))[0])
    assert kind == "OSError" and sentence == (
        f"hf://me/model cannot be downloaded: {closed.address} cannot be reached (Connection refused); check the network, then"
        " try again"
    )


def test_what_cannot_be_pushed(server, saved, tmp_path):
    push = ("push", str(saved), "me/model", "--licence", "apache-2.0")
    calls = [push, ("log in", "hf_wrong"), push, ("log in", READER), push]
    calls += [("log in", TOKEN), (*push[:-1], "cc-by-1066")]
    nobody, wrong, reader, licence = map(json.loads, child(server, tmp_path, *calls))
    assert nobody == [
        "ValueError",
        "uploading needs a token of the hub; log in with `hf auth login`, or set HF_TOKEN",
    ]
    for (kind, sentence), reason in (
        (wrong, f"{server.address} rejects your token; log in with a valid one, `hf auth login`, and unset HF_TOKEN"),
        (reader, "your token gives no access to me/model; log in with another one: `hf auth login`"),
    ):
        assert issubclass(getattr(builtins, kind), OSError)
        assert sentence.startswith(f"me/model cannot be uploaded: {reason}")
    assert licence == ["ValueError", "the hub refuses me/model: Invalid metadata in README.md. - no such license"]
    assert "params" not in "".join(server.repositories["me/model"]["main"])


def test_a_token_that_the_hub_rejects(server, saved, tmp_path):
    """It refuses public repositories too."""
    server.add("me/model", files_of(saved))
    kind, sentence = json.loads(child(server, tmp_path, ("fetch", "hf://me/model"), HF_TOKEN="hf_wrong")[0])
    assert kind == "OSError" and sentence == (
        f"hf://me/model cannot be downloaded: {server.address} rejects your token; log in with a valid one, `hf auth login`, and"
        " unset HF_TOKEN if that has an old one"
    )


@pytest.mark.parametrize("recorded", [True, False])
def test_the_card_promises_checksums_that_are_there(saved, tmp_path, recorded):
    folder = shutil.copytree(saved, tmp_path / "model")
    record = json.loads((folder / "fcclip.json").read_text())
    if not recorded:  # as earlier versions wrote it
        del record["parameters_sha256"], record["files_sha256"]
    (folder / "fcclip.json").write_text(json.dumps(record))
    card = publish.prepare(folder, "me/model", licence="mit").card
    assert ("a sha256 of each array" in card) == recorded
    assert ("`fcclip.json` describes the model." in card.splitlines()) != recorded


def test_only_whole_checkpoints_are_pushed(saved, tmp_path):
    prepare = functools.partial(publish.prepare, licence="mit")
    with pytest.raises(FileNotFoundError, match="has no fcclip.json"):
        prepare(tmp_path, "me/model")
    checkpoint.save(tmp_path / "clip", contents(clip_alone=True))
    with pytest.raises(ValueError, match="contains a CLIP alone, which cannot segment; combine it"):
        prepare(tmp_path / "clip", "me/model")
    damaged = shutil.copytree(saved, tmp_path / "damaged")
    largest = max(damaged.rglob("d/*"), key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)
    with pytest.raises(ValueError, match="params/.* does not match its checksum in fcclip.json"):
        prepare(damaged, "me/model")
    for name in ("model", "me/model/2", "me/mo--del", "me/model.git", "../model", "me/", "me/.model"):
        with pytest.raises(ValueError, match="is not the name of a repository; write OWNER/NAME"):
            prepare(saved, name)
    with pytest.raises(ValueError, match="the licence 'do what you want' is no identifier; give one such as"):
        prepare(saved, "me/model", licence="do what you want")


def test_a_dry_run_prints_the_card(saved, capsys):
    parser = argparse.ArgumentParser()
    weights_push.add_push(parser.add_subparsers())
    arguments = parser.parse_args(["push", str(saved), "me/model", "--licence", "MIT", "--dry-run"])
    assert arguments.action(arguments) == 0
    card = capsys.readouterr().out
    numbers = sum(array.size for array in contents().parameters.values())
    for line in (
        'license: "mit"',
        "pipeline_tag: image-segmentation",
        "# model",
        "| CLIP | a convnext of its own sizes; see fcclip.json |",
        f"| parameters | {numbers:,} |",
        "| words | any |",
        f"| converted from | `weights.pth`, sha256 `{'ab' * 32}` |",
        f"| CLIP's weights from | `openai`, sha256 `{'cd' * 32}` |",
        "No figures were given.",
        'segmenter = Segmenter.load("hf://me/model")',
        'segmenter.set_classes(["cat", "sky"])',
    ):
        assert line in card.splitlines()
    assert "US patent application 2025/0045929" in card


@pytest.mark.parametrize("text", ["{", "[]", '{"benchmark": "ade20k", "evaluated": 1, "sweep": []}'])
def test_reports_without_scores(saved, tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    arguments = argparse.Namespace(report=[tmp_path / "report.json"])
    with pytest.raises(ValueError, match="report.json has no scores; give the report.json that an evaluation writes"):
        weights_push.run_push(arguments)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("hf://me/model", ("me/model", None)),
        ("hf://me.too/my_model-2@refs/pr/1", ("me.too/my_model-2", "refs/pr/1")),
        ("hf://model", None),
        ("hf://me/model/params", None),
        ("hf://me/model@", None),
        ("hf://me/model@../../main", None),
        ("hf://me/mo del", None),
        ("me/model", None),
    ],
)
def test_urls(url, address):
    if address is None:
        with pytest.raises(ValueError, match="write hf://OWNER/NAME or|has no valid revision after @; give a branch"):
            hub.parse(url)
    else:
        assert hub.parse(url) == address


def test_segmenter_loads_from_the_hub(monkeypatch, saved):
    with pytest.raises(ValueError, match="hf://model does not name a checkpoint on the hub"):
        Segmenter.load("hf://model")
    monkeypatch.setattr(hub, "fetch_checkpoint", {"hf://me/model@v1": epath.Path(saved)}.__getitem__)
    assert Segmenter.load("hf://me/model@v1").training_vocabulary == contents().training_vocabulary


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ValueError, match="^loading hf://me/model needs huggingface_hub, .*: pip install 'fcclip-jax\\[weights\\]'$"
    ):
        hub.fetch_checkpoint("hf://me/model")
