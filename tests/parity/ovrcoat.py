"""Compares the arrays of an OVRCOAT: FC-CLIP's stages, and the class probabilities whose void is rescaled.

An array of the photograph has the name of its stage; one of the made-up head outputs has the prefix `cf_`, one without the
rescaling the prefix `norescale_` too. `panoptic_seg_overlap0.7` is the map at that overlap threshold. Instances have the
official scores, whose factor is the mean mask logit; `instances_sigmoid_*` are the same with FC-CLIP's factor.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from tests.parity import judge
from tests.parity.evaluation import (
    IMAGE,
    INPUTS,
    MADE_UP,
    Found,
    bucket_of,
    fill,
    held,
    output_size,
    reason,
    text_arrays,
)
from tests.parity.forcing import recorded_masks, reruns
from tests.parity.network import Heads, Network, Outcome, Size
from tests.parity.pairs import Pair, size
from tests.parity.section import Section

UNUSED = "frozen_backbone_clip_vis_dense_UNUSED"
"""Features of the second CLIP, which no result depends on: a conversion that confuses the two would find these."""

Probs = dict[str, np.ndarray]
"""Class probabilities [Q, K1] with (`after`) and without (`before`) the rescaling."""


def compare_ovrcoat(pair: Pair, network: Network, tolerance: float) -> Section:
    section = Section(pair.name, pair.arrays, network, tolerance)
    fill(section, pair, Found(text_arrays(network), {}))
    if held(pair, IMAGE):
        photograph(section, pair, network, network.stages(pair.arrays["image_u8"], {}))
        excuse(section, pair, network)
        whole(section, pair, network)
    if held(pair, MADE_UP):
        made_up(section, pair, network)
    section.close([name for name in pair.arrays if name not in INPUTS], lambda name: reason(name, pair))
    return section


def photograph(section: Section, pair: Pair, network: Network, arrays: Mapping[str, np.ndarray]) -> None:
    """Compares the stages of the photograph, and the results of the last of them."""
    for name, value in arrays.items():
        section.array(name, value)
    if UNUSED in pair.arrays:
        differs = not judge.compare_array(UNUSED, pair.arrays[UNUSED], arrays["backbone_clip_vis_dense"], 0.1).ok
        section.add(judge.Verdict(UNUSED, (), differs, None, "differs, as it must" if differs else "is used"))
    image = pair.arrays["image_u8"]
    last = network.description.head.decoder_layers
    heads = Heads(
        np.moveaxis(arrays[f"dec{last}_pred_masks"][0], 0, -1),
        arrays[f"dec{last}_pred_logits"][0],
        np.moveaxis(arrays["backbone_clip_vis_dense"][0], 0, -1),
    )
    results(section, pair, network, "", heads, image.shape[:2], output_size(pair, "output_hw", image))


def excuse(section: Section, pair: Pair, network: Network) -> None:
    """Runs the photograph again with other signs of mask logits near zero, for arrays that failed."""

    def of_photograph(name: str) -> bool:
        return not name.startswith("cf_")

    if not section.short(of_photograph):
        return
    for signs, arrays in reruns(network, pair.arrays["image_u8"], recorded_masks(pair.arrays), section.tolerance):
        again = Section(pair.name, pair.arrays, network, section.tolerance)
        photograph(again, pair, network, arrays)
        section.excuse(again, signs)
        if not section.short(of_photograph):
            return


def whole(section: Section, pair: Pair, network: Network) -> None:
    """Segments the photograph in one program, in a larger bucket, as users do."""
    image = pair.arrays["image_u8"]
    threshold = network.overlap_threshold
    name = f"panoptic_seg_overlap{threshold}"
    if name in pair.arrays:
        photo = image, output_size(pair, "output_hw", image)
        (outcome,) = network.segment([photo], bucket=bucket_of(pair))
        ids, unsure = panoptic(outcome, network)
        verdict = judge.compare_panoptic(name, pair.arrays[name], ids, unsure)
        section.add(verdict._replace(name=f"{name}, one program"), name)


def made_up(section: Section, pair: Pair, network: Network) -> None:
    heads = Heads(
        np.moveaxis(pair.arrays["cf_pred_masks"][0], 0, -1),
        pair.arrays["cf_pred_logits"][0],
        np.moveaxis(pair.arrays["cf_clip_vis_dense"][0], 0, -1),
    )
    image_hw, output_hw = (size(pair, pair.require(key)) for key in ("cf_image_hw", "cf_output_hw"))
    results(section, pair, network, "cf_", heads, image_hw, output_hw)


def results(
    section: Section, pair: Pair, network: Network, prefix: str, heads: Heads, image_hw: Size, output_hw: Size
) -> None:
    """Compares everything after the heads."""
    bucket = bucket_of(pair)
    probs: Probs = {}
    for key, void_trust in (("before", 0.0), ("after", network.void_trust)):
        (views,) = network.classify([heads], [image_hw], bucket=bucket, valid_masks_only=False, void_trust=void_trust)
        probs[key] = views["class_probs"]
    clip_probs, classes = softmax(views["logits"][:, :-1]), probs["before"][:, :-1]
    for name, value in (
        ("out_vocab_mask_pooled", views["mask_pooled"][None]),
        ("out_vocab_clip_feature", views["clip_feature"][None]),
        ("out_vocab_probs", clip_probs[None]),
        ("max_clip_prob", clip_probs.max(-1)),
        ("ensemble_probs_without_void", (classes / classes.sum(-1, keepdims=True))[None]),
        ("void_prob_before", probs["before"][:, -1]),
        ("void_prob_after", probs["after"][:, -1]),
        ("mask_cls_probs_before", probs["before"]),
        ("mask_cls_probs_after", probs["after"]),
        ("final_scores", probs["after"]),
    ):
        section.array(prefix + name, value)

    def finish(key: str, threshold: float, **options: object) -> Outcome:
        (outcome,) = network.finish(
            [(heads.mask_logits, probs[key])],
            [image_hw],
            [output_hw],
            bucket=bucket,
            overlap_threshold=threshold,
            **options,
        )
        return outcome

    for key, extra in (("after", ""), ("before", "norescale_")):
        for name, threshold in overlaps(pair, f"{prefix}{extra}panoptic_seg"):
            outcome = finish(key, threshold)
            segments = f"{prefix}{extra}segments_info_overlap{threshold}"
            section.panoptic(name, outcome, pair.facts.get(segments), segments)
        if f"{prefix}norescale_sem_seg_argmax" in pair.arrays and extra:
            section.best_class(
                f"{prefix}norescale_sem_seg_argmax", pair.arrays[f"{prefix}norescale_sem_seg_argmax"], outcome
            )
    outcome = finish("after", network.overlap_threshold, instance_scores="mask_logit")
    section.log_probs(f"{prefix}final_mask_cls_log_probs", outcome)
    section.array(f"{prefix}final_mask_pred_logits", np.moveaxis(outcome.full_logits, -1, 0))
    section.semantic(f"{prefix}sem_seg", outcome)
    section.instances(prefix, outcome, "mask_logit")
    by_probability(section, prefix, finish("after", network.overlap_threshold))


def panoptic(outcome: Outcome, network: Network) -> tuple[np.ndarray, np.ndarray]:
    """Returns the panoptic map, and the pixels that are too near to call."""
    height, width = outcome.full_logits.shape[:2]
    unsure = judge.panoptic_unsure(outcome.full_logits, outcome.class_probs, network.object_mask_threshold)
    return outcome.output.panoptic[:height, :width], unsure


def overlaps(pair: Pair, name: str) -> Iterator[tuple[str, float]]:
    """Yields the recorded maps and their overlap thresholds."""
    for full in pair.arrays:
        if match := re.fullmatch(rf"{name}_overlap([\d.]+)", full):
            yield full, float(match[1])


def by_probability(section: Section, prefix: str, outcome: Outcome) -> None:
    """Compares instances with FC-CLIP's scores, by class and query."""
    names = [f"{prefix}instances_sigmoid_{part}" for part in ("scores", "classes", "query")]
    if not all(name in section.arrays for name in names):
        return
    scores, classes, queries = (section.arrays[name] for name in names)
    ours = outcome.output.instances
    number = int(ours.number)
    found = {
        (int(label), int(query)): float(score)
        for label, query, score in zip(
            *(part[:number] for part in (ours.class_ids, ours.queries, ours.scores)), strict=True
        )
    }
    official = {
        (int(label), int(query)): float(score) for label, query, score in zip(classes, queries, scores, strict=True)
    }
    largest = max(official.values(), default=0.0) or 1.0
    error = max((abs(found.get(pair, np.inf) - score) for pair, score in official.items()), default=0.0) / largest
    ok = found.keys() == official.keys() and error <= section.tolerance
    verdict = judge.Verdict(f"{prefix}instances_sigmoid", (len(official),), ok, error, "same pairs" if ok else "")
    section.add(verdict, *names)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)
