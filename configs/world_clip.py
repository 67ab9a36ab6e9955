"""A tiny CLIP, trained from scratch on captions of the miniature world: the first half of its FC-CLIP (configs/world.py).

    python -m fcclip_jax.main --config=configs/world_clip.py --workdir=runs/world_clip

The pictures are composed for each step, in seven designs, and show all words; no mask is used. During training the CLIP
names the segments of held-out scenes, in these designs and in one that is kept back.

Pictures with captions of your own, in a file with a line {"image": "a.jpg", "captions": ["a red car in the rain"]} for each:
--config.data.captions=FILE.jsonl, with --config.init and --config.model.clip to adapt a CLIP that exists
(fcclip_jax/training/README.md).

Variants: vit trains a vision transformer of as many parameters in the same way, the rival of the paper's table 9; debug
makes everything small.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fcclip_jax.training.contrastive.optim import ContrastiveOptimSettings
from fcclip_jax.world.sprites import TRAINING_DESIGNS


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "vit", "debug"):
        raise ValueError(f"configs/world_clip.py has no variant {variant!r}; leave it out, or choose vit or debug")
    config = ConfigDict()
    config.pretrain = True
    config.seed = 1000
    config.steps = 10_000

    config.data = ConfigDict()
    config.data.captions = "world"  # or a json-lines file of your own
    config.data.designs = TRAINING_DESIGNS
    # Pixels of the square pictures, pictures in a step over all devices, captions of each picture; by turns.
    config.data.sizes = ((64, 128, 1), (128, 32, 3), (128, 32, 3))
    # Steps that read the first size alone: words are learnt sooner from pictures of one thing.
    config.data.first_steps = 1_500
    config.data.workers = 1  # processes that compose pictures

    config.model = ConfigDict({"clip": "world"})
    config.init = ""  # a CLIP to start from; by default it starts from nothing

    config.optim = ConfigDict(ContrastiveOptimSettings()._asdict())
    config.average = 0.999  # decay of the parameters' moving average, which is the result
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})  # data: -1 takes all devices

    config.log_every = 50
    config.checkpoint = ConfigDict({"every": 500, "keep_last": 2})
    # Held-out scenes whose segments are named, in each of two designs, and the steps between.
    config.eval = ConfigDict({"every": 500, "scenes": 200})
    config.wandb = placeholder(str)  # a project of Weights & Biases
    config.lock()

    if variant == "vit":
        config.model.clip = "world_vit"
    if variant == "debug":
        config.steps = 30
        config.data.sizes = ((64, 16, 1), (64, 16, 1), (128, 8, 3))
        config.data.first_steps = 10
        config.data.workers = 0
        config.log_every = 1
        config.checkpoint.every = 15
        config.eval.update({"every": 15, "scenes": 20})
    return config
