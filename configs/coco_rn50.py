"""FC-CLIP with CLIP's ResNet-50 on COCO panoptic (fcclip_r50_coco.yaml of the official code).

    fcclip-convert openclip --model RN50-quickgelu --pretrained openai --output clip_rn50
    python -m fcclip_jax.main --config=configs/coco_rn50.py --config.init=clip_rn50 --config.data.root=DATASETS --workdir=runs/rn50

Expected (PQ / AP / mIoU): COCO 50.7 / 40.7 / 58.8, ADE20K, zero-shot, 17.9 / 9.5 / 23.3. The larger ResNets are variants
of configs/coco.py: configs/coco.py:RN50x4 and so on.

Variants: none.
"""

from ml_collections import ConfigDict

from fcclip_jax.training.recipe import base_config


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(f"configs/coco_rn50.py has no variants; got {variant!r}")
    return base_config("RN50")
