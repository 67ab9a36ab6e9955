"""A run's measurements and pictures: JSON lines, TensorBoard, and Weights & Biases where configured.

log.measure("train/loss", 12.3)
log.write(step)                     # one JSON line of everything measured since the last
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from fcclip_jax import command_line, files
from fcclip_jax.training.run_folder import CONFIG

FILE = "metrics.jsonl"
"""The measurements, in the run's folder."""
SCORES = ("pq", "miou")
"""The measurements of validation that are compared between runs."""
WANDB_RUN = "wandb_run.txt"
"""The id of the run of Weights & Biases, which a resumed run continues."""


class RunLog:
    """The log of one run. Of several processes only the first writes."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        first_step: int = 0,
        wandb: str | None = None,
    ):
        """Writes the configuration, and drops logged steps after `first_step`: a resumed run repeats them.

        wandb: the project of Weights & Biases to log to, if any.

        Raises:
            ValueError: Weights & Biases is configured but not installed.
        """
        self._values: dict[str, float] = {}
        self._active = jax.process_index() == 0
        self._wandb = None
        if not self._active:
            return
        workdir = epath.Path(workdir)
        self._path = workdir / FILE
        _replace(workdir / CONFIG, json.dumps(config, indent=1, default=str) + "\n")
        _drop_after(self._path, first_step)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)
        # TensorBoard's page of hyperparameters, with the last of these scores beside them.
        for part in hparams(_flat(config), dict.fromkeys(SCORES, 0)):
            self._board.file_writer.add_summary(part)
        if wandb:
            client = command_line.import_package("wandb", f"the configuration's wandb, {wandb!r},", "leave it out")
            run = workdir / WANDB_RUN
            id = run.read_text("utf-8").strip() if run.exists() else None
            self._wandb = client.init(project=wandb, dir=str(workdir), config=dict(config), id=id, resume="allow")
            if id is None:
                _replace(run, f"{self._wandb.id}\n")

    def measure(self, name: str, value: float) -> None:
        self._values[name] = value

    def write(self, step: int) -> None:
        """Writes everything measured since the last call as one line. Numbers that are not finite become strings."""
        values, self._values = self._values, {}
        if not self._active or not values:
            return
        plain = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        line = json.dumps({"step": step, **plain}) + "\n"
        if os.path.isabs(self._path):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        else:  # an object store, whose files cannot be appended to
            self._path.write_text((self._path.read_text("utf-8") if self._path.exists() else "") + line, "utf-8")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)

    def show(self, name: str, picture: UInt8[np.ndarray, "H W 3"], step: int) -> None:
        """Adds a picture to TensorBoard."""
        if self._active:
            self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        if self._active:
            self._board.close()
        if self._wandb:
            self._wandb.finish()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Returns the values by their dotted names; what is neither a number nor a text becomes one."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found


def _drop_after(path: epath.Path, step: int) -> None:
    """Keeps the lines of steps up to `step`, and drops a line that a killed run left incomplete."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    _replace(path, "".join(kept))


def _replace(path: epath.Path, text: str) -> None:
    with files.replacing(path, sole_writer=True) as temporary:
        temporary.write_text(text, "utf-8")
