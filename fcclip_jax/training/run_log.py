"""Numbers and pictures of a run: JSON lines, TensorBoard, and Weights & Biases if asked for.

metrics.measure("train/loss", 12.3)     # as often as there is something to say
metrics.write(step)                     # one JSON line of all that was measured since the last
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

from fcclip_jax import files

FILE, CONFIG = "metrics.jsonl", "config.json"
"""In the run's folder: the measurements, and what it was configured with."""


class RunLog:
    """Of one run. Only the first process of several writes."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        first_step: int = 0,
        wandb: str | None = None,
    ):
        """Steps after `first_step`, which a killed run may have written and a resumed one will make again, are dropped.

        wandb: the project to log to; None does not.

        Raises:
            ValueError: Weights & Biases is asked for and not installed.
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
        if wandb:
            try:
                import wandb as client
            except ImportError:
                raise ValueError(
                    f"wandb is {wandb!r} in the configuration, and wandb is not installed: pip install wandb, or leave"
                    " it out"
                ) from None
            self._wandb = client.init(project=wandb, dir=str(workdir), config=dict(config), resume="allow")

    def measure(self, name: str, value: float) -> None:
        self._values[name] = value

    def write(self, step: int) -> None:
        """What was measured since the last call, as one line. Numbers that are not finite are written as strings."""
        values, self._values = self._values, {}
        if not self._active or not values:
            return
        plain = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        line = json.dumps({"step": step, **plain}) + "\n"
        if os.path.isabs(self._path):
            with self._path.open("a") as file:
                file.write(line)
        else:  # an object store: nothing can be appended there
            self._path.write_text((self._path.read_text() if self._path.exists() else "") + line)
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)

    def show(self, name: str, picture: UInt8[np.ndarray, "H W 3"], step: int) -> None:
        """A picture for TensorBoard."""
        if self._active:
            self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        if self._active:
            self._board.close()
        if self._wandb:
            self._wandb.finish()


def _drop_after(path: epath.Path, step: int) -> None:
    """Keeps the lines of steps up to `step`; one that was cut short by the end of a run goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    _replace(path, "".join(kept))


def _replace(path: epath.Path, text: str) -> None:
    with files.replacing(path, sole_writer=True) as temporary:
        temporary.write_text(text)
