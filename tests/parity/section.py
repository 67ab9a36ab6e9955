"""The verdicts on one file for one model, and its arrays that were not compared."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fcclip_jax.inference.postprocess import InstanceScores
from tests.parity import judge
from tests.parity.judge import InstanceSet, Verdict
from tests.parity.network import Network, Outcome


class Uncompared(NamedTuple):
    """An array that is not an input and was not compared; `fails` if arrays of its kind must be compared."""

    name: str
    reason: str
    fails: bool


class Section:
    """Compares the arrays of one file and records the verdicts; methods skip arrays that the file does not have."""

    def __init__(self, title: str, arrays: Mapping[str, np.ndarray], network: Network, tolerance: float):
        self.title, self.arrays, self.network, self.tolerance = title, arrays, network, tolerance
        self.verdicts: dict[str, Verdict] = {}
        self.uncompared: list[Uncompared] = []
        self._covered: set[str] = set()

    @property
    def ok(self) -> bool:
        return all(verdict.ok for verdict in self.verdicts.values()) and not any(row.fails for row in self.uncompared)

    def add(self, verdict: Verdict, *names: str) -> None:
        self.verdicts[verdict.name] = verdict
        self._covered.update(names or (verdict.name,))

    def array(self, name: str, ours: np.ndarray, tolerance: float | None = None) -> None:
        if name in self.arrays:
            limit = self.tolerance if tolerance is None else tolerance
            self.add(judge.compare_array(name, self.arrays[name], np.asarray(ours), limit))

    def log_probs(self, name: str, outcome: Outcome) -> None:
        if name in self.arrays:
            self.add(judge.compare_log_probs(name, self.arrays[name], outcome.class_probs, self.tolerance))

    def labels(self, name: str, ours: np.ndarray, unsure: np.ndarray) -> None:
        if name in self.arrays:
            self.add(judge.compare_labels(name, self.arrays[name], ours, unsure))

    def panoptic(
        self, name: str, outcome: Outcome, segments: Sequence[Mapping[str, Any]] | None, segments_name: str
    ) -> None:
        """Compares the map, and the json's list of its segments."""
        shape = outcome.full_logits.shape[:2]
        ids = outcome.output.panoptic[: shape[0], : shape[1]]
        threshold = self.network.object_mask_threshold
        if name in self.arrays or segments is not None:
            unsure = judge.panoptic_unsure(outcome.full_logits, outcome.class_probs, threshold)
        if name in self.arrays:
            self.add(judge.compare_panoptic(name, self.arrays[name], ids, unsure))
        if segments is not None:
            ours = outcome.output.segments
            self.add(judge.compare_segments(segments_name, segments, ours, self.arrays.get(name), ids, unsure))

    def semantic(self, name: str, outcome: Outcome) -> None:
        """Compares class scores [K, H, W], and the map of the best classes."""
        self.array(name, np.moveaxis(outcome.semantic_scores, -1, 0))
        if name in self.arrays:
            self.best_class(f"{name} argmax", self.arrays[name].argmax(0), outcome)

    def best_class(self, name: str, official: np.ndarray, outcome: Outcome) -> None:
        height, width = outcome.full_logits.shape[:2]
        labels = outcome.output.semantic[:height, :width]
        unsure = judge.semantic_unsure(outcome.semantic_scores)
        self.add(judge.compare_labels(name, official, labels, unsure))

    def instances(self, prefix: str, outcome: Outcome, scores: InstanceScores = "mask_probability") -> None:
        names = [f"{prefix}instances_{part}" for part in InstanceSet._fields]
        held = [name for name in names if name in self.arrays]
        if held:
            verdict = judge.compare_instances(
                f"{prefix}instances",
                InstanceSet(*map(self.arrays.get, names)),
                outcome.output.instances,
                outcome.output.mask_bits,
                outcome.full_logits,
                outcome.class_probs,
                self.network.is_thing,
                self.tolerance,
                scores,
            )
            self.add(verdict, *held)

    def short(self, among: Callable[[str], bool]) -> list[str]:
        """Returns the names of the arrays that fail."""
        return [name for name, verdict in self.verdicts.items() if not verdict.ok and among(name)]

    def excuse(self, again: "Section", signs: Sequence[object]) -> None:
        """Excuses arrays that fail here but not in `again`, where other signs of mask logits near zero were forced."""
        for name in self.short(lambda name: name in again.verdicts and again.verdicts[name].ok):
            verdict, forced = self.verdicts[name], again.verdicts[name]
            was = verdict.found if verdict.error is None else f"{verdict.error:.1e}"
            note = f"teacher-forced (was {was}); excused: {'; '.join(map(str, signs[:3]))}"
            self.verdicts[name] = forced._replace(found="; ".join(filter(None, (forced.found, note))))

    def close(self, names: Sequence[str], reason: Callable[[str], tuple[str, bool]]) -> None:
        """Records each of `names` that was not compared, with a reason and whether that fails the run."""
        for name in names:
            if name not in self._covered:
                self.uncompared.append(Uncompared(name, *reason(name)))
