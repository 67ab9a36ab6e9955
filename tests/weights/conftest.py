"""A table of tiny models, and a service that offers them."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
import safetensors.numpy

from convert import fcclip
from fcclip_jax.models import description_json
from fcclip_jax.weights import table
from tests.convert.tiny import CLIPS, model_description, official_tensors
from tests.weights.service import Service

ROOT = pathlib.Path(__file__).parents[2]
TINY = "tests/tiny"
CHILD = "import pathlib, sys; from fcclip_jax.weights import table; table.TABLE = pathlib.Path(sys.argv[1]); "


@pytest.fixture
def service():
    service = Service()
    yield service
    service.close()


@pytest.fixture(scope="session")
def contents() -> dict[str, bytes]:
    """The files: a whole FC-CLIP, its head, and its CLIP."""
    tensors = official_tensors(model_description("convnext"))
    heads = {key: array for key, array in tensors.items() if not key.startswith(fcclip.CLIP_PREFIX)}
    clip = {
        key.removeprefix(fcclip.CLIP_PREFIX): array
        for key, array in tensors.items()
        if key.startswith(fcclip.CLIP_PREFIX)
    }
    return {name: safetensors.numpy.save(part) for name, part in (("whole", tensors), ("heads", heads), ("clip", clip))}


@pytest.fixture
def tiny(service, contents, tmp_path, monkeypatch) -> pathlib.Path:
    """Offers the files and returns the folder of converted weights; all caches are the test's own."""
    model = tmp_path / "clip.json"
    model.write_text(json.dumps(description_json.to_json(CLIPS["convnext"])))
    common = {"model": str(model), "licence": "MIT", "page": "https://example.org/tiny", "reported": {}, "notes": []}
    whole = {"kind": "fcclip", "vocabulary": "coco_panoptic"}
    clip_sum = {"sha256": hashlib.sha256(contents["clip"]).hexdigest(), "sha256_from": "reported by its authors"}
    records = [
        {"name": "tiny_drive", "title": "of Drive", **whole, "drive": "ID1", "file": "tiny.safetensors"},
        {"name": "tiny_hub", "title": "of the hub", **whole, "hub": TINY, "file": "whole.safetensors"},
        {"name": "tiny_clip", "title": "CLIP", "kind": "clip", "hub": TINY, "file": "clip.safetensors", **clip_sum},
        {
            "name": "tiny_heads",
            "title": "heads",
            **whole,
            "hub": TINY,
            "file": "heads.safetensors",
            "clip": "tiny_clip",
        },
        {"name": "tiny_wrong", "title": "wrong", **whole, "drive": "ID1", "file": "tiny.safetensors"}
        | {"sha256": "0" * 64, "sha256_from": "reported by nobody"},
    ]
    path = tmp_path / "weights.json"
    path.write_text(
        json.dumps({"method": "Somebody has a patent.", "entries": [common | record for record in records]})
    )
    monkeypatch.setattr(table, "TABLE", path)
    for name in ("whole", "heads", "clip"):
        service.hub[f"{TINY}/resolve/main/{name}.safetensors"] = contents[name]
    service.drive["ID1"] = contents["whole"]
    monkeypatch.setenv("FCCLIP_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FCCLIP_JAX_DRIVE", service.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", service.address)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache" / "weights"


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """Starts Python code in another process, with the test's table in sys.argv[1] and the arguments after it."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, str(table.TABLE), *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Runs `fcclip` in another process: exit code, stdout, stderr. The hub's client reads its variables once, at import."""
    code = "from fcclip_jax import cli; sys.exit(cli.main(sys.argv[2:]))"
    with start(code, *arguments, **environment) as child:
        out, error = child.communicate(timeout=120)
    return child.returncode, out, error
