"""FC-CLIP trained on ADE20K panoptic instead of COCO (the paper's table 5), with the same recipe.

    python -m fcclip_jax.main --config=configs/ade20k.py --config.init=clip_l --config.data.root=DATASETS --workdir=runs/ade20k

DATASETS holds ADEChallengeData2016 with ade20k_panoptic_train.json and its PNGs. Expected, PQ / SQ / RQ: ADE20K 41.9 / 78.2 /
50.2; COCO, zero-shot, 27.0 / 78.0 / 32.9.

Variants: those of configs/coco.py.
"""

from ml_collections import ConfigDict

from fcclip_jax.training.recipe import base_config


def get_config(variant: str = "") -> ConfigDict:
    config = base_config(variant)
    config.data.dataset = "ade20k_panoptic"
    return config
