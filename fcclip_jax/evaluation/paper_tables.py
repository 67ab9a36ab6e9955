"""What the paper and the official model zoo report, in percent."""

from collections.abc import Mapping
from typing import NamedTuple

from fcclip_jax.models.descriptions import CLIP_MODELS, ConvNeXtDescription, ResNetDescription


class Reported(NamedTuple):
    model: str
    scores: Mapping[str, Mapping[str, float]]
    """By benchmark, then by their names in the report; "_grounding" follows the names of table 7's."""


def _zoo(name: str, ade20k: tuple[float, float, float], coco: tuple[float, float, float]) -> Reported:
    """Figures are PQ, AP and mIoU."""
    names = ("pq", "ap", "miou")
    scores = {benchmark: dict(zip(names, row, strict=True)) for benchmark, row in (("ade20k", ade20k), ("coco", coco))}
    return Reported(f"{name}, COCO", scores)


PAPER = Reported(
    "ConvNeXt-L, COCO",
    {  # Tables 1, 2, 3 and 7.
        "coco": {"pq": 54.4, "ap": 44.6, "miou": 63.7},
        "ade20k": {"pq": 26.8, "ap": 16.8, "miou": 34.1, "pq_grounding": 38.4, "miou_grounding": 54.1},
        "cityscapes": {"pq": 44.0, "sq": 75.4, "rq": 53.6, "ap": 26.8, "miou": 56.2, "pq_grounding": 48.1},
        "mapillary": {"pq": 18.2, "sq": 57.7, "rq": 22.9, "miou": 27.9, "pq_grounding": 21.5},
        "ade20k_847": {"miou": 14.8, "miou_grounding": 33.4},
        "pascal_context_459": {"miou": 18.2, "miou_grounding": 41.2},
        "pascal_context_59": {"miou": 58.4, "miou_grounding": 74.9},
        "pascal_voc_21": {"miou": 81.8, "miou_grounding": 88.7},
        "pascal_voc_20": {"miou": 95.4, "miou_grounding": 98.5},
    },
)

REPORTED: dict[tuple[str, str], Reported] = {
    ("convnext_large_d_320", "coco_panoptic"): PAPER,
    ("convnext_large_d_320", "ade20k_150"): Reported(
        "ConvNeXt-L, ADE20K",
        {"coco": {"pq": 27.0, "sq": 78.0, "rq": 32.9}, "ade20k": {"pq": 41.9, "sq": 78.2, "rq": 50.2}},  # table 5
    ),
    ("RN50", "coco_panoptic"): _zoo("RN50", (17.9, 9.5, 23.3), (50.7, 40.7, 58.8)),
    ("RN101", "coco_panoptic"): _zoo("RN101", (19.1, 10.2, 24.0), (51.4, 41.6, 58.9)),
    ("RN50x4", "coco_panoptic"): _zoo("RN50x4", (21.8, 11.7, 26.8), (52.1, 42.8, 60.4)),
    ("RN50x16", "coco_panoptic"): _zoo("RN50x16", (22.5, 13.6, 29.4), (54.4, 45.0, 63.3)),
    ("RN50x64", "coco_panoptic"): _zoo("RN50x64", (22.8, 13.6, 28.4), (55.6, 46.4, 65.3)),
}
"""By CLIP model and training vocabulary."""


def reported_for(trunk: ConvNeXtDescription | ResNetDescription, training: str) -> Reported:
    """Of the model with this trunk, trained in this vocabulary; the paper's main one where nothing is reported of it."""
    for (clip, vocabulary), reported in REPORTED.items():
        if vocabulary == training and CLIP_MODELS[clip].image == trunk:
            return reported
    return PAPER
