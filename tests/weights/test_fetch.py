"""The services' real clients against a server on the loopback: downloads, cuts, refusals. Nothing is converted."""

import hashlib
import json
import random
import sys
import time

import pytest

from fcclip_jax import cli, files
from fcclip_jax.weights import arrival, store
from tests.weights import conftest
from tests.weights.service import QUOTA

gdown = pytest.importorskip("gdown", reason="downloads from Google Drive (extra: weights)")
huggingface_hub = pytest.importorskip("huggingface_hub", reason="downloads from the hub (extra: weights)")

CLOSED = "http://127.0.0.1:9"
"""The discard port: no machine that runs tests listens there."""


PIECE = 512 * 1024
"""Bytes that gdown writes at once; less is lost at a cut. The hub's client writes 10 MiB at once."""


@pytest.fixture(autouse=True)
def converted(monkeypatch) -> dict[str, bytes]:
    """What arrived, by name: conversion only makes the folder."""
    arrived = {}

    def convert(entry, path, clip, *, overwrite):
        arrived[entry.name] = path.read_bytes()
        store.folder(entry.name).mkdir(parents=True, exist_ok=overwrite)

    monkeypatch.setattr(arrival, "convert", convert)
    return arrived


@pytest.fixture
def hub(tiny, service, monkeypatch):
    """Points the hub's client to the service; it reads its variables when it is imported, which has happened."""
    from huggingface_hub import constants

    def point_to(address, *, offline=False):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tiny / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)

    point_to(service.address)
    return point_to


@pytest.fixture
def get(tiny, capsys):
    """Runs `fcclip weights get` and returns the exit code and what it printed on stderr, without the last line's end."""

    def run(*arguments):
        code = cli.main(["weights", "get", *map(str, arguments)])
        return code, capsys.readouterr().err.rstrip("\n")

    return run


def by_hand(name):
    address = {
        "tiny_drive": "https://drive.google.com/file/d/ID1/view",
        "tiny_wrong": "https://drive.google.com/file/d/ID1/view",
        "tiny_hub": "https://huggingface.co/tests/tiny/resolve/main/whole.safetensors",
    }[name]
    return f"download it in a browser from {address} and run `fcclip weights get {name} --file FILE`"


def refused(result, name, reason):
    code, error = result
    assert code == 2
    assert error.splitlines()[-1] == f"error: {reason}, or {by_hand(name)}"
    assert not store.folder(name).exists() and store.read_record(name) is None


@pytest.mark.parametrize("confirm", [False, True], ids=["at once", "after a confirmation"])
def test_drive(get, service, contents, converted, confirm):
    service.confirm = confirm
    code, said = get("tiny_drive")
    assert code == 0 and converted == {"tiny_drive": contents["whole"]}
    sha256 = hashlib.sha256(contents["whole"]).hexdigest()
    folder = store.folder("tiny_drive")
    assert said.splitlines() == [
        f"downloading tiny_drive: tiny.safetensors, size unknown, from {service.address}; licence: MIT",
        f"tiny_drive is ready in {folder} (sha256 {sha256}, recorded now, to compare later files with)",
    ]
    assert store.read_record("tiny_drive").sha256 == sha256
    assert not store.downloads("tiny_drive").exists()
    asked = len(service.seen)
    assert get("tiny_drive") == (0, "") and len(service.seen) == asked
    code, said = get("tiny_drive", "--overwrite", "--keep-download")
    assert code == 0 and "as at its first use" in said and len(service.seen) > asked
    assert (store.downloads("tiny_drive") / "tiny.safetensors").read_bytes() == contents["whole"]


def test_hub(get, hub, service, contents, converted):
    code, said = get("tiny_hub")
    assert code == 0 and converted == {"tiny_hub": contents["whole"]}
    assert said.splitlines()[0] == (
        f"downloading tiny_hub: whole.safetensors, 0.378 MB, from {service.address}; licence: MIT"
    )
    # What the client has in its cache needs no network, and no second download.
    hub(CLOSED)
    code, said = get("tiny_hub", "--overwrite")
    assert code == 0 and "downloading" not in said and len(service.downloads()) == 1


@pytest.mark.parametrize("confirm", [False, True], ids=["at once", "after a confirmation"])
def test_drive_resumes(get, service, converted, monkeypatch, confirm):
    monkeypatch.setattr(random, "uniform", lambda low, high: low)  # the pauses between the client's attempts
    content = random.Random(0).randbytes(8 * PIECE)
    service.drive["ID1"], service.confirm = content, confirm
    service.cuts[:] = [PIECE + 9] * 4  # its first attempt and three more
    folder = store.downloads("tiny_drive")
    reason = (
        f"the download of tiny.safetensors stopped early (Download is incomplete: received {4 * PIECE} bytes but the server"
        f" announced {8 * PIECE} bytes); repeat this to resume it, delete {folder} to start over"
    )
    refused(get("tiny_drive"), "tiny_drive", reason)
    (partial,) = folder.glob("*.part")
    assert partial.read_bytes() == content[: 4 * PIECE] and not converted
    service.seen.clear()
    assert get("tiny_drive")[0] == 0 and converted == {"tiny_drive": content}
    (resumed,) = [seen for seen in service.downloads() if seen.range]
    assert (resumed.range, resumed.status, resumed.sent) == (f"bytes={4 * PIECE}-", 206, 4 * PIECE)


def test_hub_resumes_after_a_cut(get, hub, service, converted):
    piece, content = 10 * 2**20, random.Random(0).randbytes(24 * 2**20)
    service.hub["tests/tiny/resolve/main/whole.safetensors"] = content
    service.cuts[:] = [piece + 9]
    assert get("tiny_hub")[0] == 0 and converted == {"tiny_hub": content}
    first, second = service.downloads()
    assert (first.range, first.sent) == (None, piece + 9)
    assert (second.range, second.status, second.sent) == (f"bytes={piece}-", 206, len(content) - piece)


def test_a_quota_page(get, service):
    service.quota = True
    reason = f"{service.address} sends a web page instead of tiny.safetensors ({QUOTA.rstrip('.')}); try again later"
    refused(get("tiny_drive"), "tiny_drive", reason)


def test_a_page_saved_by_a_browser(get, tmp_path):
    (tmp_path / "tiny.safetensors").write_text("\N{BYTE ORDER MARK}\n<!DOCTYPE html>")
    code, error = get("tiny_drive", "--file", tmp_path / "tiny.safetensors")
    assert code == 2
    assert error == f"error: {tmp_path}/tiny.safetensors is a web page, not tiny.safetensors; {by_hand('tiny_drive')}"


def test_a_wrong_sum(get, service, contents, converted):
    sha256 = hashlib.sha256(contents["whole"]).hexdigest()
    path = store.downloads("tiny_wrong") / "tiny.safetensors"
    reason = (
        f"{path} has the sha256 {sha256} instead of {'0' * 64} (reported by nobody), so it is damaged or another file;"
        " repeat the download"
    )
    refused(get("tiny_wrong"), "tiny_wrong", reason)
    assert not path.exists() and not converted  # the next attempt downloads it again


def test_a_file_that_changed_since_its_first_use(get, service, contents, converted):
    assert get("tiny_drive")[0] == 0
    service.drive["ID1"] = contents["heads"]
    code, error = get("tiny_drive", "--overwrite")
    first, second = (hashlib.sha256(contents[name]).hexdigest() for name in ("whole", "heads"))
    record = store.record_of("tiny_drive")
    assert code == 2 and f"has the sha256 {second}, but tiny_drive had {first} when it was first used here" in error
    assert f"if its authors replaced the file, delete {record} and repeat this" in error
    assert converted == {"tiny_drive": contents["whole"]}
    record.unlink()
    assert get("tiny_drive", "--overwrite")[0] == 0
    assert converted == {"tiny_drive": contents["heads"]} and store.read_record("tiny_drive").sha256 == second


def test_a_file_whose_first_bytes_look_like_a_tag(get, tmp_path, converted):
    """The first eight bytes of .safetensors are a length: here 15,392."""
    content = (0x3C20).to_bytes(8, "little") + b"{}"
    (tmp_path / "tiny.safetensors").write_bytes(content)
    assert get("tiny_drive", "--file", tmp_path / "tiny.safetensors")[0] == 0
    assert converted == {"tiny_drive": content}


def test_files_that_are_none(get, tmp_path):
    assert get("tiny_drive", "--file", tmp_path) == (
        2,
        f"error: {tmp_path} is a folder; give the file tiny.safetensors inside it",
    )
    code, error = get("tiny_drive", "--file", tmp_path / "nothing")
    assert (code, error) == (2, f"error: the weight file {tmp_path}/nothing does not exist; check the path")


def test_a_download_that_does_not_convert(get, service, contents, converted, monkeypatch):
    """Without a published sum it may be truncated; the sentence says how to download it again."""

    def fail(entry, path, clip, *, overwrite):
        raise ValueError("tiny_drive does not convert: it is truncated")

    convert = arrival.convert
    monkeypatch.setattr(arrival, "convert", fail)
    path = store.downloads("tiny_drive") / "tiny.safetensors"
    assert get("tiny_drive")[1].splitlines()[-1] == (
        f"error: tiny_drive does not convert: it is truncated; the download is kept: delete {path} to repeat it"
    )
    assert store.read_record("tiny_drive") is None
    path.unlink()
    monkeypatch.setattr(arrival, "convert", convert)
    assert get("tiny_drive")[0] == 0 and converted == {"tiny_drive": contents["whole"]}


def test_the_record_of_the_first_use(get, service):
    path = store.record_of("tiny_drive")
    assert get("tiny_drive")[0] == 0
    first = json.dumps({**json.loads(path.read_text()), "date": "2020-02-20"})
    path.write_text(first)
    assert get("tiny_drive", "--overwrite")[0] == 0 and path.read_text() == first
    for damaged in ("{", "[]", '{"sha256": "0"}'):
        path.write_text(damaged)
        code, error = get("tiny_drive", "--overwrite")
        assert code == 2 and error.splitlines()[-1] == (
            f"error: {path} is not a record of a checksum; delete it to record the next file's"
        )


def test_files_that_are_gone(get, hub, service):
    service.drive.clear()
    service.hub.clear()
    for name, file, page in (("tiny_drive", "tiny", "tiny"), ("tiny_hub", "whole", "tiny")):
        reason = (
            f"{service.address} has no {file}.safetensors any more (404); look for it at https://example.org/{page}"
        )
        refused(get(name), name, reason)


def test_no_network(get, hub, monkeypatch):
    monkeypatch.setenv("FCCLIP_JAX_DRIVE", CLOSED)
    hub(CLOSED)
    for name in ("tiny_drive", "tiny_hub"):
        refused(get(name), name, f"{CLOSED} cannot be reached (Connection refused); check the network")


def test_offline(get, hub, service, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub(service.address, offline=True)
    for name in ("tiny_drive", "tiny_hub"):
        reason = f"{name} is not here yet, and HF_HUB_OFFLINE forbids downloads; unset HF_HUB_OFFLINE"
        refused(get(name), name, reason)
    assert not service.seen


def test_no_space(get, hub, service, contents, tiny, monkeypatch):
    sizes = []

    def full(folder, size):
        sizes.append(size)
        if size:
            raise OSError(f"it takes {size} bytes: No space left on device; free some space")

    monkeypatch.setattr(files, "check_space", full)
    service.drive["ID1"] = bytes(4 * PIECE)
    for name, size, file, folder in (
        (
            "tiny_drive",
            3 * PIECE,
            "tiny.safetensors",
            f"{store.downloads('tiny_drive')} (another folder: FCCLIP_JAX_CACHE)",
        ),
        ("tiny_hub", len(contents["whole"]), "whole.safetensors", f"{tiny / 'hub'} (another folder: HF_HOME)"),
    ):
        problem = f"it takes {size} bytes: No space left on device; free some space"
        refused(get(name), name, f"{file} does not fit into {folder}: {problem}; when there is space, repeat this")
    # The size of Drive's file is known when its first piece is here.
    assert sizes == [0, 3 * PIECE, len(contents["whole"])]


@pytest.mark.parametrize(("name", "package"), [("tiny_drive", "gdown"), ("tiny_hub", "huggingface_hub")])
def test_a_missing_client(get, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    reason = f"downloading {name} needs {package}, which is not installed: pip install 'fcclip-jax[weights]'"
    refused(get(name), name, reason)


def test_two_processes_fetch_once(tiny, service, contents):
    code = (
        "from fcclip_jax import weights; from fcclip_jax.weights import arrival, store;"
        "arrival.convert = lambda entry, *_, **__: store.folder(entry.name).mkdir();"
        "print(weights.get('tiny_drive'))"
    )
    service.pause.clear()
    with conftest.start(code) as first, conftest.start(code) as second:
        lines = {}
        for child in (first, second):
            # A process waits for the service, or for the other process, once it has written its first line.
            lines[child] = child.stderr.readline()
        time.sleep(0.5)
        assert first.poll() is second.poll() is None
        service.pause.set()
        outputs = [child.communicate(timeout=60)[0] for child in (first, second)]
    assert first.returncode == second.returncode == 0
    assert outputs == [f"{tiny / 'tiny_drive'}\n"] * 2
    fetching, waiting = sorted(lines.values())
    assert fetching.startswith("downloading tiny_drive: ")
    assert waiting == "waiting for another process, which fetches tiny_drive\n"
    assert [seen.sent for seen in service.downloads()] == [len(contents["whole"])]


def test_a_file_by_hand_waits_for_a_download(tiny, contents, tmp_path):
    """The other process may bring the weights meanwhile, and would take a conversion under way for a killed one's remains."""
    file = tmp_path / "browser.safetensors"
    file.write_bytes(contents["whole"])
    code = "from fcclip_jax import cli; sys.exit(cli.main(sys.argv[2:]))"
    with store.one_process_at_once("tiny_drive", ""):
        child = conftest.start(code, "weights", "get", "tiny_drive", "--file", str(file))
        line = child.stderr.readline()
        assert line == "waiting for another process, which fetches tiny_drive\n"
        store.folder("tiny_drive").mkdir()
    _, error = child.communicate(timeout=60)
    assert child.returncode == 2 and error == (
        f"error: tiny_drive is here already, in {tiny / 'tiny_drive'}; convert {file} in its place with --overwrite\n"
    )
