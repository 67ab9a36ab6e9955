"""A run that is over in seconds: a tiny model, on tiny annotated images."""

import pathlib
import sys

from ml_collections import ConfigDict

from fcclip_jax.data.datasets import open_dataset
from fcclip_jax.data.records import Dataset
from tests.data import tiny

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

HEAD = {
    "hidden_dim": 32,
    "mask_dim": 32,
    "heads": 2,
    "encoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_layers": 1,
    "decoder_ffn_dim": 32,
    "num_queries": 6,
}
OVERRIDES = {
    "batch_size": 4,
    "steps": 6,
    "data.crop": 64,
    "data.max_segments": 8,
    "losses.num_points": 64,
    "checkpoint.every": 3,
    "eval.every": 0,
    **{f"model.head.{name}": value for name, value in HEAD.items()},
}


def load_config(name: str, variant: str = "") -> ConfigDict:
    """One of the project's, which imports its neighbours."""
    sys.path.insert(0, str(CONFIGS))
    try:
        return __import__(name).get_config(variant)
    finally:
        sys.path.remove(str(CONFIGS))


def config(paths: tiny.Paths, **changes) -> ConfigDict:
    found = load_config("custom", "debug")
    found.update_from_flattened_dict({**OVERRIDES, **data_paths(paths), **changes})
    return found


def data_paths(paths: tiny.Paths) -> dict[str, str]:
    """The same images for training and validation."""
    return {
        f"data.{split}.{name}": str(path)
        for split in ("train", "val")
        for name, path in zip(("images", "panoptic_json", "panoptic_pngs"), paths, strict=True)
    }


def source(found: ConfigDict) -> Dataset:
    return open_dataset(found.data.dataset, None, "train", **found.data.train)


def command(paths: tiny.Paths, workdir: pathlib.Path, *flags: str, **changes) -> list[str]:
    """The command line of the same run."""
    values = {**OVERRIDES, **data_paths(paths), **changes}
    return [
        sys.executable,
        "-m",
        "fcclip_jax.main",
        f"--config={CONFIGS / 'custom.py'}:debug",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in values.items()),
        *flags,
    ]
