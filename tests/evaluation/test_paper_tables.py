"""The published scores that a report compares with a model's."""

from fcclip_jax.evaluation.benchmarks import BENCHMARKS
from fcclip_jax.evaluation.paper_tables import PAPER, REPORTED, reported_for
from fcclip_jax.models.descriptions import CLIP_MODELS, SMALL


def test_the_model_decides():
    large = CLIP_MODELS["convnext_large_d_320"].image
    assert reported_for(large, "coco_panoptic") is PAPER
    assert reported_for(large, "ade20k_150").scores["coco"]["pq"] == 27.0
    assert reported_for(CLIP_MODELS["RN50x64"].image, "coco_panoptic").scores["ade20k"]["miou"] == 28.4
    assert reported_for(SMALL.clip.image, "coco_panoptic") is PAPER


def test_benchmarks_are_called_as_in_their_table():
    assert PAPER.scores.keys() == BENCHMARKS.keys()
    assert all(reported.scores.keys() <= BENCHMARKS.keys() for reported in REPORTED.values())
