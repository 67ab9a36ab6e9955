"""The paper's zero-shot evaluation of a checkpoint, one benchmark at a time.

    python -m fcclip_jax.main --config=configs/eval.py:ade20k --config.root=DATASETS --checkpoint=DIR --workdir=runs/ade20k

Variants: coco, ade20k, cityscapes, mapillary, ade20k_847, pascal_context_459, pascal_context_59, pascal_voc_21,
pascal_voc_20; world, 1,000 test scenes of the miniature world (configs/world.py), which needs no files; custom, data of your own,
in COCO's panoptic format or as images with label maps.

    --config=configs/eval.py:world --config.world.designs=kept_back
    --config=configs/eval.py:custom --config.custom.images=photos --config.custom.panoptic_json=panoptic.json \
        --config.custom.panoptic_pngs=panoptic
    --config=configs/eval.py:custom --config.custom.images=photos --config.custom.labels=maps \
        --config.custom.words="cat, kitten; sofa; wall" --config.panoptic=False --config.instances=False

Reported for the ConvNeXt-L checkpoint (PQ / AP / mIoU): COCO 54.4 / 44.6 / 63.7, ADE20K 26.8 / 16.8 / 34.1, Cityscapes 44.0 /
26.8 / 56.2, Mapillary Vistas 18.2 / - / 27.9; mIoU: A-847 14.8, PC-459 18.2, PC-59 58.4, PAS-21 81.8, PAS-20 95.4.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fcclip_jax.conventions import MAX_SIDE, SHORT_SIDE, TASKS
from fcclip_jax.data.datasets import CUSTOM
from fcclip_jax.evaluation.benchmarks import BENCHMARKS
from fcclip_jax.world.panoptic import WORLD
from fcclip_jax.world.scenes import SHAPE


def get_config(variant: str = "") -> ConfigDict:
    if variant not in (*BENCHMARKS, WORLD, CUSTOM):
        raise ValueError(
            f"configs/eval.py has no variant {variant!r}; name a benchmark, as in configs/eval.py:ade20k: one of"
            f" {', '.join(BENCHMARKS)}, {WORLD} or {CUSTOM}"
        )
    benchmark = BENCHMARKS.get(variant)
    config = ConfigDict()
    config.benchmark = variant
    config.root = "datasets"  # the folder of all datasets, or the benchmark's own
    config.images = 0  # evaluate only this many images, evenly spread over the dataset; 0 evaluates all

    # The size in pixels to which images are resized for the network.
    config.short_side = benchmark.short_side if benchmark else SHORT_SIDE
    config.max_side = benchmark.max_side if benchmark else MAX_SIDE
    if variant == WORLD:
        config.short_side, config.max_side = SHAPE
    # Images per batch of one process, shared among its devices; by default one per device.
    config.batch_size = placeholder(int)
    # Computes a batch in one program; by default only on accelerators. False computes image by image, as CPUs do by default: the
    # report is then the same for any batch size and any number of devices, but each device compiles its own programs.
    config.batched = placeholder(bool)
    # "float32", as in the paper; on accelerators "tf32" (GPUs) and "bfloat16" are faster.
    config.precision = "float32"
    for task in TASKS:
        config[task] = benchmark is None or task in benchmark.tasks
    # The minimum share of its own mask that a panoptic segment must keep; by default the checkpoint's, 0.8 officially.
    config.overlap_threshold = placeholder(float)
    # How far the certainty of CLIP reduces the probability of void, from 0 to 1, as OVRCOAT does; by default the checkpoint's, 0
    # for FC-CLIP.
    config.void_trust = ConfigDict({task: placeholder(float) for task in TASKS})
    # "mask_probability" or, as OVRCOAT scores instances, "mask_logit"; by default the checkpoint's.
    config.instance_scores = placeholder(str)
    # Forms class scores before masks are resized, as the official code does where it evaluates semantic maps alone.
    config.semantic_before_resize = benchmark is not None and benchmark.panoptic is None
    config.grounding = False  # offer each image only the classes that its annotation has (table 7)

    # Values to use instead of the checkpoint's own for the ensemble of the two classifiers; mode is geometric or arithmetic.
    config.ensemble = ConfigDict({"alpha": placeholder(float), "beta": placeholder(float), "mode": placeholder(str)})

    # Measures the PQ of many ways to classify the same masks, in one pass over the images: "ensemble" (12 pairs of alpha and beta
    # in both modes, table 8), "resolution" (sizes of the image that CLIP classifies on, table 9; second_checkpoint may be another
    # CLIP to compare with), or "classifiers" (those of this checkpoint, whose trunk was trained, and of second_checkpoint, whose
    # trunk was frozen, table 6).
    config.sweep = placeholder(str)
    config.second_checkpoint = placeholder(str)

    config.save_predictions = False  # write results in the public formats into WORKDIR/predictions
    # Draws this many of the images with the lowest scores next to their annotation, in WORKDIR/worst.html.
    config.worst = 20

    # The designs of the emoji in the variant world: training, or kept_back, which no training uses.
    config.world = ConfigDict({"designs": "training"})
    # Data of your own. For label maps, words are the classes in the labels' order, as for fcclip segment --classes: "cat|kitten; sofa",
    # a file or a vocabulary's name.
    names = ("images", "panoptic_json", "panoptic_pngs", "labels", "words")
    config.custom = ConfigDict({name: placeholder(str) for name in names})
    config.custom.first_label = 0  # the label of the first class; pixels with smaller labels are ignored
    # The label of ignored pixels; by default the vocabulary's own, or 255 unless that is the number of a class.
    config.custom.ignore_label = placeholder(int)
    config.lock()
    return config
