"""The published scores that a report compares with a model's."""

from fcclip_jax.evaluation.benchmarks import BENCHMARKS
from fcclip_jax.evaluation.paper_tables import PAPER, REPORTED, WORLD_SIDES, reported_for, sweep_of
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


def test_the_resolutions_of_both_clips():
    official = sweep_of("resolution", "ade20k", second_clip=False)
    assert [row.cells for row in official.rows] == [("own", side) for side in (224, 448, 672, 896, 1120)]
    both = sweep_of("resolution", "world", second_clip=True)
    assert [row.cells for row in both.rows] == [(clip, side) for clip in ("own", "second") for side in WORLD_SIDES]
    assert [row.short_side for row in both.rows if row.second_clip] == list(WORLD_SIDES)
    assert sweep_of("ensemble", "world", second_clip=False) is sweep_of("ensemble", "ade20k", second_clip=False)
