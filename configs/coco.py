"""FC-CLIP on COCO panoptic: the official recipe (Yu et al., section 4.1; the official code's configs/coco/panoptic-segmentation/fcclip).

    fcclip-convert openclip --model convnext_large_d_320 --pretrained laion2b_s29b_b131k_ft_soup --output clip_l
    python -m fcclip_jax.main --config=configs/coco.py --config.init=clip_l --config.data.root=DATASETS --workdir=runs/coco

All values, read top to bottom: fcclip_jax/training/recipe.py; those of the optimiser are in fcclip_jax/training/optim.py and
those of the losses in fcclip_jax/training/losses/criterion.py.

Expected of the last checkpoint, with ConvNeXt-L (PQ / AP / mIoU): COCO 56.5 / 47.6 / 65.0, ADE20K, zero-shot, 25.3 / 16.2 /
32.8; the published one, chosen by ADE20K's PQ, has 54.4 / 44.6 / 63.7 and 26.8 / 16.8 / 34.1.

Variants, as in configs/coco.py:debug
    debug             everything small, random weights, 20 steps, on images made for it if the root has none: a test of the
                      installation, a minute on a laptop
    trainable_clip    the image trunk trains too, at a tenth of the learning rate (the paper's table 6)
    NAME              another CLIP: convnext_base, convnext_base_w, convnext_base_w_320, convnext_large_d, convnext_large_d_320,
                      convnext_xxlarge, RN50, RN101, RN50x4, RN50x16 or RN50x64. Expected of OpenAI's ResNets, COCO PQ (ADE20K
                      PQ): RN50 50.7 (17.9), RN101 51.4 (19.1), RN50x4 52.1 (21.8), RN50x16 54.4 (22.5), RN50x64 55.6 (22.8)
"""

from ml_collections import ConfigDict

from fcclip_jax.training.recipe import base_config


def get_config(variant: str = "") -> ConfigDict:
    return base_config(variant)
