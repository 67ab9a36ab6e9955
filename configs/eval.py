"""The paper's zero-shot evaluation of a checkpoint, one benchmark at a time.

    python -m fcclip_jax.main --config=configs/eval.py:ade20k --config.root=DATASETS --checkpoint=DIR --workdir=runs/ade20k

Variants: coco, ade20k, cityscapes, mapillary, ade20k_847, pascal_context_459, pascal_context_59, pascal_voc_21,
pascal_voc_20, and custom for data of your own, in COCO's panoptic format or as images with label maps:

    --config=configs/eval.py:custom --config.custom.images=photos --config.custom.panoptic_json=panoptic.json \
        --config.custom.panoptic_pngs=panoptic
    --config=configs/eval.py:custom --config.custom.images=photos --config.custom.labels=maps \
        --config.custom.words="cat, kitten; sofa; wall" --config.panoptic=False --config.instances=False

Reported for the ConvNeXt-L checkpoint (PQ / AP / mIoU): COCO 54.4 / 44.6 / 63.7, ADE20K 26.8 / 16.8 / 34.1, Cityscapes 44.0 /
26.8 / 56.2, Mapillary Vistas 18.2 / - / 27.9; mIoU: A-847 14.8, PC-459 18.2, PC-59 58.4, PAS-21 81.8, PAS-20 95.4.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fcclip_jax.conventions import TASKS
from fcclip_jax.evaluation.benchmarks import BENCHMARKS


def get_config(variant: str = "") -> ConfigDict:
    if variant not in (*BENCHMARKS, "custom"):
        raise ValueError(
            f"configs/eval.py has no variant {variant!r}; name the benchmark, as in configs/eval.py:ade20k, one of"
            f" {', '.join(BENCHMARKS)} or custom"
        )
    row = BENCHMARKS.get(variant)
    config = ConfigDict()
    config.benchmark = variant
    config.root = "datasets"  # the folder of the data sets, or the benchmark's own
    config.images = 0  # only so many, evenly spread over the data set; 0 takes all

    config.short_side = row.short_side if row else 800  # of the image as the network reads it
    config.max_side = row.max_side if row else 1333
    # Of each process, dealt out to its devices; by default one image for each of them.
    config.batch_size = placeholder(int)
    # Whether a batch is one program, by default on accelerators. False computes image by image, as a CPU does anyway: the
    # report is then the same for any batch size and any number of devices, each of which has its programs compiled.
    config.batched = placeholder(bool)
    # Of float32 products on accelerators: "highest" is float32 itself, as the paper's figures were made; "default" is faster, with
    # as many bits as JAX takes there, TF32's on GPUs and bfloat16's on TPUs.
    config.precision = "highest"
    for task in TASKS:
        config[task] = row is None or task in row.tasks
    config.overlap_threshold = 0.8  # the least share of its own mask that a panoptic segment must keep
    # Class scores are formed before masks are resized where the official code evaluates semantic maps alone.
    config.semantic_before_resize = row is not None and row.panoptic is None
    config.grounding = False  # offers each image only the classes that its annotation has (table 7)

    # What differs from the checkpoint's own ensemble of the two classifiers.
    config.ensemble = ConfigDict({"alpha": placeholder(float), "beta": placeholder(float), "mode": placeholder(str)})

    # PQ of many ways to classify the same masks, in one pass over the images: "ensemble" (12 pairs of alpha and beta in both
    # modes, table 8), "resolution" (of the image that CLIP classifies on, table 9), or "classifiers" (table 6: of this
    # checkpoint, with a trunk that was trained, and of a second one with a frozen trunk).
    config.sweep = placeholder(str)
    config.second_checkpoint = placeholder(str)

    config.save_predictions = False  # in the public formats, into the work folder
    config.worst = 20  # images that are drawn beside their annotation, on an HTML page

    names = ("images", "panoptic_json", "panoptic_pngs", "labels", "words")  # label maps: words parted by ;
    config.custom = ConfigDict({name: placeholder(str) for name in names})
    config.custom.first_label = 0  # the number of the first class in label maps; smaller ones do not count
    # The number of pixels that do not count; by default the vocabulary's own, or 255 if that is not the number of a class.
    config.custom.ignore_label = placeholder(int)
    config.lock()
    return config
