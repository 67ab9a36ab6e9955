"""A template for your own data: images, and panoptic annotations in COCO's format. Copy it and change the paths.

    python -m fcclip_jax.main --config=configs/custom.py --config.init=fcclip_convnext_large --workdir=runs/custom

The json's categories {"id", "name", "isthing"} become the training vocabulary; | or commas separate the synonyms in a
name ("cat|kitten"). This configuration fine-tunes the released FC-CLIP on a few thousand images. A checkpoint of a CLIP
alone (`fcclip-convert openclip`) starts with a new head instead, and needs the steps of configs/coco.py. The result
depends on the data: watch "pq" in TensorBoard. Without a val split, set eval.every to 0.

Variants: those of configs/coco.py; debug runs in a minute, from random weights, on your data.
"""

from ml_collections import ConfigDict

from fcclip_jax.training.recipe import base_config


def get_config(variant: str = "") -> ConfigDict:
    config = base_config(variant)
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
