"""An example for data of your own: images, and panoptic annotations in COCO's format. Copy it and change the paths.

    python -m fcclip_jax.main --config=configs/custom.py --config.init=fcclip_convnext_large --workdir=runs/custom

The json's categories become the training vocabulary: {"id", "name", "isthing"}, and synonyms of a name parted by commas
("cat, kitten"). Here training goes on from the released FC-CLIP, for a few thousand images; a checkpoint of a CLIP alone
(`python -m convert openclip`) starts with a new head instead, and takes the steps of configs/coco.py. What to expect
depends on the data: watch "pq" in TensorBoard. configs/custom.py:debug runs in a minute, from random weights.
"""

import coco
from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = coco.get_config(variant)
    config.data.dataset = "custom"
    for split in ("train", "val"):
        config.data[split].images = f"datasets/custom/{split}"
        config.data[split].panoptic_json = f"datasets/custom/panoptic_{split}.json"
        config.data[split].panoptic_pngs = f"datasets/custom/panoptic_{split}"
    if variant == "debug":
        return config
    config.steps = 20_000
    config.optim.learning_rate = 5e-5
    config.optim.milestones = (17_000, 19_000)
    config.checkpoint.every = 1_000
    config.eval.every = 1_000
    return config
