"""Compares `semantic_only` and `batch_mixed`, more photographs for the models of the pairs `small_<arch>_eval`."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.parity import judge
from tests.parity.evaluation import bucket_of
from tests.parity.forcing import reruns
from tests.parity.network import Heads, Network, Outcome, Size, larger_bucket
from tests.parity.pairs import Pair, size
from tests.parity.section import Section

HEADS = ("pred_masks", "pred_logits", "clip_vis_dense")
"""The inputs of a crafted case."""

F16_ULP = 1e-3
"""Half precision keeps 11 bits."""


def compare_extra(extra: Pair, models: Mapping[str, tuple[Pair, Network]], tolerance: float) -> list[Section]:
    """Returns one section per model. `models` are those of the pairs next to or above the file, by their `<arch>`."""
    compare = {"semantic_only": semantic_only, "batch_mixed": batch_mixed}[extra.path.stem]
    return compare(extra, models, tolerance)


def semantic_only(extra: Pair, models: Mapping[str, tuple[Pair, Network]], tolerance: float) -> list[Section]:
    """Compares class scores that are formed at the padded size and then resized."""
    cases = extra.require("cases")
    arch = _arch_of_semantic_only(extra, models)
    if arch not in models:
        return [_without_model(extra, arch, list(extra.arrays))]
    pair, network = models[arch]
    network.read_classes(extra)
    section = Section(f"{extra.name} ({arch})", extra.arrays, network, tolerance)
    image_hw, output_hw = ([size(extra, case[key]) for case in cases] for key in ("image_hw", "output_hw"))
    bucket = _bucket(pair, image_hw)
    photos = [i for i in range(len(cases)) if f"case{i}_image" in extra.arrays]
    if photos:
        images = [extra.arrays[f"case{i}_image"] for i in photos]
        # The same program as for the other files, except for the steps after its heads.
        outcomes = network.segment([(x, x.shape[:2]) for x in images], bucket=bucket, before_resize=False)
        for i, image, outcome in zip(photos, images, outcomes, strict=True):
            fill = functools.partial(
                _fill_semantic, prefix=f"case{i}_", sizes=(image_hw[i], output_hw[i]), bucket=bucket
            )
            _compare_photo(section, image, outcome, bucket, fill)
    made_up = [i for i in range(len(cases)) if f"case{i}_clip_vis_dense" in extra.arrays]
    if made_up:
        sizes = [image_hw[i] for i in made_up], [output_hw[i] for i in made_up]
        prefixes = [f"case{i}_" for i in made_up]
        for prefix, outcome in zip(prefixes, _made_up(extra, network, prefixes, *sizes, bucket, True), strict=True):
            section.log_probs(f"{prefix}mask_cls_log_probs", outcome)
            section.semantic(f"{prefix}sem_seg", outcome)
    given = {f"case{i}_{name}" for i in made_up for name in HEADS} | {f"case{i}_image" for i in photos}
    section.close([name for name in extra.arrays if name not in given], _reason)
    return [section]


def batch_mixed(extra: Pair, models: Mapping[str, tuple[Pair, Network]], tolerance: float) -> list[Section]:
    """Compares images of different sizes: in one bucket and one batch, each must give the same result as alone."""
    archs = [key for key, value in extra.facts.items() if isinstance(value, dict) and "images" in value]
    sections = []
    for arch in archs:
        made_up = arch.startswith("crafted_")
        prefix = "crafted_" if made_up else f"{arch}_"
        names = [name for name in extra.arrays if name.startswith(prefix)]
        arch = arch.removeprefix("crafted_")
        if arch not in models:
            sections.append(_without_model(extra, arch, names))
            continue
        pair, network = models[arch]
        section = Section(
            f"{extra.name} ({'made-up heads, ' if made_up else ''}{arch})", extra.arrays, network, tolerance
        )
        (_made_up_batch if made_up else _photo_batch)(section, extra, pair, prefix)
        given = {f"crafted_image{i}_{name}" for i in range(len(names)) for name in HEADS}
        section.close([name for name in names if name not in given], _reason)
        sections.append(section)
    return sections


def _photo_batch(section: Section, extra: Pair, pair: Pair, prefix: str) -> None:
    rows = extra.require(prefix.removesuffix("_"), "images")
    photos = [extra.arrays.get(f"image{i}") for i in range(len(rows))]
    if any(photo is None for photo in photos):
        return
    sizes = [photo.shape[:2] for photo in photos]
    bucket = _bucket(pair, sizes)
    network = section.network
    outcomes = network.segment(list(zip(photos, sizes, strict=True)), bucket=bucket, before_resize=False)
    for i, (photo, outcome) in enumerate(zip(photos, outcomes, strict=True)):
        fill = functools.partial(_fill_mixed, prefix=f"{prefix}image{i}_", row=rows[i], bucket=bucket)
        _compare_photo(section, photo, outcome, bucket, fill)


def _made_up_batch(section: Section, extra: Pair, pair: Pair, prefix: str) -> None:
    rows = extra.require(next(key for key in extra.facts if key.startswith(prefix)), "images")
    names = [f"{prefix}image{i}_" for i in range(len(rows))]
    if any(f"{name}{part}" not in extra.arrays for name in names for part in HEADS):
        return
    sizes = [size(extra, row["image_hw"]) for row in rows]
    outcomes = _made_up(extra, section.network, names, sizes, sizes, _bucket(pair, sizes), False)
    for name, row, outcome in zip(names, rows, outcomes, strict=True):
        section.array(f"{name}class_probs", outcome.class_probs)
        section.log_probs(f"{name}mask_cls_log_probs", outcome)
        _best_class(section, f"{name}sem_seg_argmax", outcome)
        _panoptic(section, name, "", outcome, row)


Fill = Callable[[Section, Outcome], None]


def _compare_photo(section: Section, image: np.ndarray, outcome: Outcome, bucket: Size, fill: Fill) -> None:
    """Compares an outcome at the image's own size with `fill`, and repeats failed arrays with other signs."""
    before = set(section.verdicts)
    fill(section, outcome)
    network = section.network
    last = network.description.head.decoder_layers

    def new(name: str) -> bool:
        return name not in before

    if not section.short(new):
        return
    hw = image.shape[:2]
    for signs, arrays in reruns(network, image, {}, section.tolerance):
        heads = np.moveaxis(arrays[f"dec{last}_pred_masks"][0], 0, -1), arrays["class_probs"][0]
        (forced,) = network.finish([heads], [hw], [hw], bucket=bucket, before_resize=False)
        again = Section(section.title, section.arrays, network, section.tolerance)
        fill(again, forced._replace(class_logits=arrays[f"dec{last}_pred_logits"][0]))
        section.excuse(again, signs)
        if not section.short(new):
            return


def _fill_semantic(section: Section, outcome: Outcome, prefix: str, sizes: tuple[Size, Size], bucket: Size) -> None:
    _probabilities(section, prefix, outcome)
    heads = [(outcome.mask_logits, outcome.class_probs)]
    image_hw, output_hw = sizes
    (done,) = section.network.finish(heads, [image_hw], [output_hw], bucket=bucket, before_resize=True)
    section.semantic(f"{prefix}sem_seg", done)


def _fill_mixed(section: Section, outcome: Outcome, prefix: str, row: Mapping[str, Any], bucket: Size) -> None:
    network = section.network
    _probabilities(section, prefix, outcome)
    _best_class(section, f"{prefix}sem_seg_argmax", outcome)
    margin, _ = judge.panoptic_margin(outcome.full_logits, outcome.class_probs, network.object_mask_threshold)
    section.array(f"{prefix}panoptic_margin_f16", margin, F16_ULP)
    _panoptic(section, prefix, "", outcome, row)
    heads, hw = [(outcome.mask_logits, outcome.class_probs)], [outcome.full_logits.shape[:2]]
    found = (re.fullmatch(rf"{prefix}panoptic_seg(_overlap([\d.]+))", name) for name in section.arrays)
    for suffix, threshold in (match.groups() for match in found if match):
        options = {"overlap_threshold": float(threshold), "before_resize": False}
        (other,) = network.finish(heads, hw, hw, bucket=bucket, **options)
        _panoptic(section, prefix, suffix, other, row)


def _panoptic(section: Section, prefix: str, suffix: str, outcome: Outcome, row: Mapping[str, Any]) -> None:
    segments = row.get(f"segments_info{suffix}")
    section.panoptic(f"{prefix}panoptic_seg{suffix}", outcome, segments, f"{prefix}segments_info{suffix}")


def _made_up(
    extra: Pair,
    network: Network,
    names: list[str],
    image_hw: list[Size],
    output_hw: list[Size],
    bucket: Size,
    before_resize: bool,
) -> list[Outcome]:
    """Computes everything after the heads, for recorded head outputs."""
    heads = []
    for name in names:
        masks, logits, dense = (extra.arrays[f"{name}{part}"] for part in HEADS)
        heads.append(Heads(np.moveaxis(masks, 0, -1), logits, np.moveaxis(dense, 0, -1)))
    valid_masks_only = network.description.ensemble.valid_masks_only
    views = network.classify(heads, image_hw, bucket=bucket, valid_masks_only=valid_masks_only)
    rows = [(head.mask_logits, view["class_probs"]) for head, view in zip(heads, views, strict=True)]
    return network.finish(rows, image_hw, output_hw, bucket=bucket, before_resize=before_resize)


def _probabilities(section: Section, prefix: str, outcome: Outcome) -> None:
    section.array(f"{prefix}class_probs", outcome.class_probs)
    section.log_probs(f"{prefix}mask_cls_log_probs", outcome)
    section.array(f"{prefix}pred_logits", outcome.class_logits)
    section.array(f"{prefix}pred_masks", np.moveaxis(outcome.mask_logits, -1, 0))


def _best_class(section: Section, name: str, outcome: Outcome) -> None:
    if name in section.arrays:
        section.best_class(name, section.arrays[name], outcome)


def _bucket(pair: Pair, sizes: list[Size]) -> Size:
    """Returns the pair's own bucket, whose programs are compiled already, enlarged if the images need it."""
    height, width = np.maximum(bucket_of(pair), larger_bucket(sizes))
    return int(height), int(width)


def _arch_of_semantic_only(extra: Pair, models: Mapping[str, tuple[Pair, Network]]) -> str:
    """Returns the architecture whose features fit the crafted ones, since the file does not name it."""
    channels = {value.shape[0] for name, value in extra.arrays.items() if name.endswith("clip_vis_dense")}
    fitting = [
        arch for arch, (_, network) in models.items() if {network.description.clip.image.feature_dims[-1]} == channels
    ]
    return fitting[0] if fitting else "convnext"


def _without_model(extra: Pair, arch: str, names: list[str]) -> Section:
    section = Section(f"{extra.name} ({arch})", extra.arrays, None, 0.0)
    missing = f"its model is that of small_{arch}_eval, which is neither next to it nor in a folder above"
    section.close([name for name in names if not re.search(r"image\d*$", name)], lambda name: (missing, True))
    return section


KIND = re.compile(
    r"case\d+_(sem_seg|mask_cls_log_probs|pred_logits|pred_masks)|"
    r"\w+_image\d+_(class_probs|mask_cls_log_probs|pred_logits|pred_masks|sem_seg_argmax|panoptic_\w+(\.\d+)?)"
)


def _reason(name: str) -> tuple[str, bool]:
    known = bool(KIND.fullmatch(name))
    return ("an input that it depends on is missing" if known else "no array of this kind is known"), known
