"""Compares `X_train`: one training step with the official code's random draws, and the weights after two updates."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fcclip_jax.training.optim import OptimSettings, hyperparameters, learning_rate
from tests.parity.forcing import NOISE, signs_near_zero
from tests.parity.judge import Verdict
from tests.parity.network import Network
from tests.parity.pairs import Pair, vocabulary
from tests.parity.recorded import Inputs, Names, official_order, read_inputs, run
from tests.parity.section import Section
from tests.parity.training_step import StepOutcome, TrainingStep

GRADIENT = 1e-3
"""The tolerance relative to an array's largest gradient: the official code differs from itself by 4e-4."""

UPDATE = 1e-6
"""The tolerance of weights near 1 that were updated by the recorded gradients: their last digits."""

NEAR = 1e-5
"""A tenth of an update, which is as large as the learning rate for any gradient. A gradient that is only noise has a
random sign: so all but a small share of the elements must be this close, and none may differ by more than two
updates."""

INPUTS = re.compile(r"image\d+_u8|gt\d+_(masks|labels)|target\d+_masks|rand_\d+")
KINDS = re.compile(
    r"out\d+_pred_(logits|masks)|cost_\d+|match\d+_img\d+_(query|target)|loss_points_\d+"
    r"|(un)?weighted_loss_\w+|total_loss2?|grad_.+|after2?_.+"
)


def compare_training(pair: Pair, evaluated: Pair, network: Network, tolerance: float) -> Section:
    """Compares a pair. `evaluated` is its X_eval, of which `network` is the model."""
    section = Section(pair.name, pair.arrays, network, tolerance)
    if (inputs := read_inputs(pair, network)) is None:
        section.close([name for name in pair.arrays if not INPUTS.fullmatch(name)], lambda name: _reason(name, True))
        return section
    words = vocabulary(evaluated, "train_classes")
    step = TrainingStep(network.model, network.encoder.classifier(words, words), inputs.settings)
    names = Names(network.description.clip.image.family, {name: x.shape for name, x in step.parameters.items()})
    overlap_line(section, pair, inputs)
    compare_facts(section, pair, names)
    outcome = run(step, step.parameters, pair, inputs, 0)
    fill(section, pair, inputs, names, outcome, len(words.classes))
    if section.short(lambda name: True):
        excuse(section, pair, inputs, names, step, outcome, len(words.classes))
    compare_updates(section, pair, inputs, names, step, outcome)
    section.close([name for name in pair.arrays if not INPUTS.fullmatch(name)], lambda name: _reason(name, False))
    return section


def _reason(name: str, without_inputs: bool) -> tuple[str, bool]:
    if not KINDS.fullmatch(name):
        return "no array of this kind is known", False
    if without_inputs:
        return "the file has no images, targets or draws", True
    if name.startswith("after") or name in ("total_loss2", "grad_norm2"):
        return "the file has no other weights, or no draws, for this update", True
    return "the configured model has no such array", True


def overlap_line(section: Section, pair: Pair, inputs: Inputs) -> None:
    masks = [pair.arrays[f"target{i}_masks"].astype(bool) for i in range(len(inputs.batch.images))]
    shared = sum(int((x.sum(0) > 1).sum()) for x in masks)
    text = f"{shared} pixels of two masks went to the first" if shared else "no overlap"
    section.add(Verdict("target_masks", inputs.batch.targets.segment_map.shape, True, None, text))


def compare_facts(section: Section, pair: Pair, names: Names) -> None:
    """Returns the optimiser's settings in the json."""
    settings = OptimSettings()
    if (groups := pair.facts.get("param_groups")) is not None:
        by_key = names.by_key()
        theirs = {row["key"]: (row["lr"], row["weight_decay"], *row["betas"], row["eps"]) for row in groups}
        ours = {}
        for key, name in by_key.items():
            of = hyperparameters(name, settings)
            ours[key] = (settings.learning_rate * of.multiplier, of.weight_decay, *settings.betas, settings.eps)
        wrong = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
        text = f"{len(wrong)} differ, {wrong[0]} is one" if wrong else "equal"
        section.add(Verdict("param_groups", (len(theirs),), not wrong, None, text))
    if (rates := pair.facts.get("lr_at_iteration")) is not None:
        rate = learning_rate(settings)
        error = max(abs(float(rate(jnp.int32(int(step)))) / theirs - 1) for step, theirs in rates.items())
        # Ours is a float32.
        section.add(Verdict("lr_at_iteration", (len(rates),), error < 1e-6, error))
    if (limit := pair.facts.get("clip_full_model_value")) is not None:
        section.add(Verdict("clip_full_model_value", (), limit == settings.clip_norm, None, str(settings.clip_norm)))


def fill(section: Section, pair: Pair, inputs: Inputs, names: Names, outcome: StepOutcome, classes: int) -> None:
    """Compares predictions, matching, losses and gradients."""
    batch = len(inputs.batch.images)
    logits = np.concatenate(
        [outcome.prediction.class_logits[..., :classes], outcome.prediction.class_logits[..., -1:]], -1
    )
    weights = {"ce": inputs.settings.class_weight, "mask": inputs.settings.mask_weight}
    weights["dice"] = inputs.settings.dice_weight
    for call, output in enumerate(inputs.outputs):
        section.array(f"out{call}_pred_logits", logits[output])
        section.array(f"out{call}_pred_masks", np.moveaxis(outcome.prediction.mask_logits[output], -1, 1))
        queries = outcome.queries[output]
        for i in range(batch):
            real = (inputs.batch.targets.labels[i] >= 0).sum()
            section.array(f"cost_{call * batch + i}", outcome.costs[output, i, :, :real])
            slots = [slot for row, slot in official_order(queries) if row == i]
            section.array(f"match{call}_img{i}_query", queries[i, slots].astype(np.int64))
            section.array(f"match{call}_img{i}_target", np.asarray(slots))
        points_line(section, f"loss_points_{call}", outcome.points[output], queries)
        suffix = "" if call == 0 else f"_{output}"
        for (name, weight), loss in zip(weights.items(), outcome.losses, strict=True):
            section.array(f"unweighted_loss_{name}{suffix}", loss[output])
            section.array(f"weighted_loss_{name}{suffix}", weight * loss[output])
    section.array("total_loss", outcome.total)
    for key, gradient in names.official(outcome.gradients).items():
        section.array(f"grad_{key}", gradient, GRADIENT)
    section.array("grad_norm", norm(outcome.gradients), GRADIENT)


def norm(gradients: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in gradients.values()))


def points_line(section: Section, name: str, points: np.ndarray, queries: np.ndarray) -> None:
    """Compares the points of each pair, in any order. They are recorded draws, so they must be equal bit for bit."""
    if name not in section.arrays:
        return
    official = section.arrays[name]
    order = official_order(queries)
    packed = {place: i for i, place in enumerate(sorted(order))}
    if len(order) != len(official):
        section.add(Verdict(name, official.shape, False, None, f"ours are {len(order)} pairs"))
        return
    missing = [
        len({tuple(x) for x in official[i].tolist()} - {tuple(x) for x in points[packed[place]].tolist()})
        for i, place in enumerate(order)
    ]
    text = f"{sum(missing)} points differ" if any(missing) else "equal"
    section.add(Verdict(name, official.shape, not any(missing), None, text))


def excuse(
    section: Section, pair: Pair, inputs: Inputs, names: Names, step: TrainingStep, outcome: StepOutcome, classes: int
):
    """Runs the step again with the recorded masks in all hard thresholds, for arrays that failed."""
    calls = [inputs.outputs.index(output) for output in range(len(inputs.outputs))]
    recorded = [pair.arrays.get(f"out{call}_pred_masks") for call in calls]
    if any(masks is None for masks in recorded):
        return
    crossed, near = [], []
    for row in range(len(inputs.batch.images)):
        pairs = {
            i: (np.moveaxis(outcome.prediction.mask_logits[i, row], -1, 0), masks[row])
            for i, masks in enumerate(recorded)
        }
        for sign in signs_near_zero(pairs, section.tolerance):
            text = f"image {row}, {sign}"
            if (sign.logit > 0) != (sign.forced > 0):
                crossed.append(text)
            elif sign.relative <= NOISE:
                near.append(text)
    # The decoder computes coarse logits in another order, so their signs may differ from those of the masks.
    if signs := crossed or near:
        masks = np.stack([np.moveaxis(x, 1, -1) for x in recorded])
        again = Section(pair.name, pair.arrays, section.network, section.tolerance)
        fill(again, pair, inputs, names, run(step, step.parameters, pair, inputs, 0, masks), classes)
        section.excuse(again, signs)


def compare_updates(
    section: Section, pair: Pair, inputs: Inputs, names: Names, step: TrainingStep, outcome: StepOutcome
) -> None:
    """Compares the update from the recorded gradients, and from ours."""
    recorded, after, after2 = (names.ours(pair, prefix) for prefix in ("grad_", "after_", "after2_"))
    start = step.optimizer.init(jax.tree.map(jnp.asarray, step.parameters))
    rate = OptimSettings().learning_rate
    if not after:
        return
    own, own_state = step.update(outcome.gradients, start, step.parameters)
    line(section, "after_", "ours", own, after, 0.95, 2 * rate)
    if recorded:
        found, state = step.update(recorded, start, step.parameters)
        error = max(float(np.abs(found[name] - after[name]).max()) for name in after)
        covered = [name for name in pair.arrays if name.startswith("after_")]
        section.add(Verdict("after_ of recorded gradients", (len(covered),), error <= UPDATE, error), *covered)
    calls = 2 * len(inputs.outputs) * (len(inputs.batch.images) + 2)
    if not after2 or f"rand_{calls - 1:03d}" not in pair.arrays:
        return
    # The second step's gradients are not recorded. Ours are used: at the official weights after the first step, then at
    # our own.
    if recorded:
        second = run(step, after, pair, inputs, 1)
        section.array("total_loss2", second.total)
        section.array("grad_norm2", norm(second.gradients), GRADIENT)
        line(section, "after2_", "from after_", step.update(second.gradients, state, after)[0], after2, 0.9, 2 * rate)
    second = run(step, own, pair, inputs, 1)
    line(section, "after2_", "ours", step.update(second.gradients, own_state, own)[0], after2, 0.9, 4 * rate)


def line(section: Section, prefix: str, of: str, ours, official, share: float, limit: float) -> None:
    """Returns the share of all weights' elements that are near, and the largest difference."""
    gaps = np.concatenate([np.abs(np.asarray(ours[name]) - official[name]).reshape(-1) for name in official])
    near, farthest = float(np.mean(gaps <= NEAR)), float(gaps.max())
    text = f"{near:.3%} of {gaps.size} within {NEAR:.0e}, at least {share:.0%}; farthest {farthest:.1e}, at most {limit:.0e}"
    covered = [name for name in section.arrays if name.startswith(prefix)]
    # A step is computed in float32 too.
    ok = near >= share and farthest <= limit * (1 + 1e-3)
    section.add(Verdict(f"{prefix} of our gradients, {of}", (len(covered),), ok, None, text), *covered)
