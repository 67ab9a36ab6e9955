"""FC-CLIP on COCO panoptic: the official recipe (Yu et al., section 4.1; configs/coco/panoptic-segmentation/fcclip).

    python -m convert openclip --model convnext_large_d_320 --pretrained laion2b_s29b_b131k_ft_soup --output clip_l
    python -m fcclip_jax.main --config=configs/coco.py --config.init=clip_l --config.data.root=DATASETS --workdir=runs/coco

Expected of the last checkpoint, with ConvNeXt-L (PQ / AP / mIoU): COCO 56.5 / 47.6 / 65.0, ADE20K, zero-shot, 25.3 / 16.2 /
32.8; the published one, picked by ADE20K's PQ, has 54.4 / 44.6 / 63.7 and 26.8 / 16.8 / 34.1.

Variants, as in configs/coco.py:debug
    debug             everything small, random weights, 20 steps: a minute on a laptop, to see that all works
    trainable_clip    the image trunk trains too, at a tenth of the learning rate (the paper's table 6)
    NAME              another CLIP of `fcclip_jax.models.descriptions`, such as convnext_base_w_320 or RN50x16. Expected of
                      OpenAI's ResNets, COCO PQ (ADE20K PQ): RN50 50.7 (17.9), RN101 51.4 (19.1), RN50x4 52.1 (21.8), RN50x16
                      54.4 (22.5), RN50x64 55.6 (22.8)
"""

import dataclasses

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fcclip_jax.models.descriptions import CLIP_MODELS, SMALL, HeadDescription
from fcclip_jax.training.losses.criterion import LossSettings
from fcclip_jax.training.optim import OptimSettings

VARIANTS = ("debug", "trainable_clip", *CLIP_MODELS)


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.steps = 368_750
    config.batch_size = 16  # over all devices
    config.accumulate = 1  # parts that a batch is computed in, one after the other

    config.data = ConfigDict()
    config.data.dataset = "coco_panoptic"
    config.data.root = "datasets"  # as it was unpacked, or as `fcclip prepare` or TFDS wrote it
    for split in ("train", "val"):  # of a dataset "custom", instead of the root
        config.data[split] = ConfigDict({n: placeholder(str) for n in ("images", "panoptic_json", "panoptic_pngs")})
    config.data.crop = 1024
    config.data.max_segments = 128  # of an image: its largest ones
    config.data.workers = 8  # processes that decode and jitter, in each process of a pod

    config.model = ConfigDict()
    config.model.clip = "convnext_large_d_320"
    config.model.head = ConfigDict(dataclasses.asdict(HeadDescription()))
    config.init = ""  # a checkpoint of that CLIP, or of an FC-CLIP to go on with; or "random"
    config.train_trunk = False

    config.compute_dtype = "bfloat16"  # trunk and mask decoder; the pixel decoder and the losses are float32
    config.deform_attn_precision = placeholder(str)  # "bfloat16" is faster on TPUs, None is exact
    config.remat = True  # compute layers again for the gradient instead of keeping what is inside them
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})  # data: -1 takes all devices

    config.losses = ConfigDict(LossSettings()._asdict())
    config.optim = ConfigDict(OptimSettings()._asdict())
    config.average = placeholder(float)  # decay of the parameters' moving average, such as 0.9999

    config.log_every = 50
    config.checkpoint = ConfigDict({"every": 5_000, "keep_last": 2, "keep_best": 1, "best": "pq"})
    config.eval = ConfigDict({"every": 10_000, "images": 500, "pictures": 8, "short_side": 800, "max_side": 1333})
    config.wandb = placeholder(str)  # a project of Weights & Biases
    config.lock()

    if variant == "debug":
        make_small(config)
    elif variant == "trainable_clip":
        config.train_trunk = True
    elif variant in CLIP_MODELS:
        # OpenAI trained its ResNets with quick GELU.
        config.model.clip = f"{variant}-quickgelu" if variant.startswith("RN") else variant
    elif variant:
        raise ValueError(f"configs/coco.py has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    return config


def make_small(config: ConfigDict) -> None:
    """A model and images that a laptop trains on in a minute, from random weights; it learns nothing worth having."""
    config.steps = 20
    config.batch_size = 2
    config.data.crop = 128
    config.data.workers = 0
    config.model.clip = "small"
    config.model.head.update(dataclasses.asdict(SMALL.head))
    config.init = "random"
    config.compute_dtype = "float32"
    config.losses.num_points = 1024
    config.log_every = 1
    config.checkpoint.every = 10
    config.eval.update({"every": 20, "images": 4, "pictures": 2, "short_side": 128, "max_side": 224})
