"""The official training recipe as a configuration, which the files in configs/ start from."""

import dataclasses

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fcclip_jax.conventions import MAX_SIDE, RANDOM_WEIGHTS, SHORT_SIDE
from fcclip_jax.data.transforms import SCALES
from fcclip_jax.models.descriptions import CLIP_MODELS, SMALL, HeadDescription
from fcclip_jax.training.losses.criterion import LossSettings
from fcclip_jax.training.optim import OptimSettings

VARIANTS = ("debug", "trainable_clip", *CLIP_MODELS)


def base_config(variant: str = "") -> ConfigDict:
    """Returns the official recipe for COCO panoptic, locked, or one of its VARIANTS.

    Raises:
        ValueError: no variant has that name.
    """
    config = ConfigDict()
    config.seed = 0
    config.steps = 368_750
    config.batch_size = 16  # over all devices
    config.accumulate = 1  # parts that a batch is computed in, one after the other

    config.data = ConfigDict()
    config.data.dataset = "coco_panoptic"
    config.data.root = "datasets"  # the unpacked dataset, or one that `fcclip prepare` or TFDS wrote
    config.data.examples = 0  # training images to make up in the workdir if the root has no dataset, to test the setup
    for split in ("train", "val"):  # paths of the dataset "custom", instead of the root
        config.data[split] = ConfigDict({n: placeholder(str) for n in ("images", "panoptic_json", "panoptic_pngs")})
    # The dataset "world" has no files: the number of its training scenes, and the designs of its emoji.
    config.data.world = ConfigDict({"images": 50_000, "designs": "training"})
    config.data.crop = 1024
    config.data.jitter = SCALES  # the smallest and the largest scale of images, relative to the crop
    config.data.max_segments = 128  # of each image, the largest
    config.data.workers = 8  # processes that decode and augment, in each process of a pod

    config.model = ConfigDict()
    config.model.clip = "convnext_large_d_320"
    config.model.head = ConfigDict(dataclasses.asdict(HeadDescription()))
    config.init = ""  # a checkpoint of that CLIP, or of an FC-CLIP to fine-tune, such as "world"; or "random"
    config.train_trunk = False

    config.compute_dtype = "bfloat16"  # trunk and mask decoder; the pixel decoder and the losses are float32
    config.deform_attn_precision = placeholder(str)  # "bfloat16" is faster on TPUs, None is exact
    config.remat = True  # recompute activations for the gradient instead of keeping them
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})  # data: -1 takes all devices

    config.losses = ConfigDict(LossSettings()._asdict())
    config.optim = ConfigDict({**OptimSettings()._asdict(), "muon_learning_rate": placeholder(float)})
    config.average = placeholder(float)  # decay of the parameters' moving average, such as 0.9999

    config.log_every = 50
    config.checkpoint = ConfigDict({"every": 5_000, "keep_last": 2, "keep_best": 1, "best": "pq"})
    config.eval = ConfigDict(
        {"every": 10_000, "images": 500, "pictures": 8, "short_side": SHORT_SIDE, "max_side": MAX_SIDE}
    )
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
        raise ValueError(f"the configuration has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    return config


def make_small(config: ConfigDict) -> None:
    """Makes the model and the images small: a laptop trains in a minute, from random weights, to no useful result."""
    config.steps = 20
    config.batch_size = 2
    config.data.crop = 128
    config.data.workers = 0
    config.data.examples = 32
    config.model.clip = "small"
    config.model.head.update(dataclasses.asdict(SMALL.head))
    config.init = RANDOM_WEIGHTS
    config.compute_dtype = "float32"
    config.losses.num_points = 1024
    config.log_every = 1
    config.checkpoint.every = 10
    config.eval.update({"every": 20, "images": 4, "pictures": 2, "short_side": 128, "max_side": 224})
