"""Helpers of the tests of fcclip annotate: files in and out, and the official scripts' results."""

import hashlib
import json
import pathlib

import numpy as np
from PIL import Image

from fcclip_jax import cli

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def golden(section: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns fixtures, and the official preparation scripts' output for them."""
    with np.load(GOLDEN / "annotations.npz") as arrays:
        return json.loads((GOLDEN / "annotations.json").read_text())[section], dict(arrays)


def save(pixels: np.ndarray, path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def save_palette(indices: np.ndarray, path: pathlib.Path) -> None:
    """Saves a label map like Pascal VOC's: a palette image whose indices are the labels."""
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def photo(shape: tuple[int, ...], path: pathlib.Path, seed: int = 0) -> None:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8))
    pixels = np.asarray(coarse.resize(shape[1::-1], Image.Resampling.BICUBIC))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def load(path: pathlib.Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def load_ids(path: pathlib.Path) -> np.ndarray:
    return load(path).astype(np.int64) @ [1, 256, 65536]


def tree(root: pathlib.Path) -> dict[str, str]:
    """Returns a checksum of each file below the folder."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def annotate(dataset: str, root: pathlib.Path, *splits: str) -> int:
    return cli.main(["annotate", dataset, "--root", str(root), *(("--splits", *splits) if splits else ())])


def refusal(dataset: str, root: pathlib.Path, capsys, *splits: str) -> str:
    """Runs the command, which must exit with 2, and returns its one-sentence error."""
    capsys.readouterr()
    assert annotate(dataset, root, *splits) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]
