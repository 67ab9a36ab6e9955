"""The nine benchmarks of the paper: where their files lie, their test sizes, and their official numbers of images."""

from typing import NamedTuple

from fcclip_jax.conventions import MAX_SIDE, SHORT_SIDE, TASKS
from fcclip_jax.data.datasets import DATASETS, FOLDERS, Layout


class MapFiles(NamedTuple):
    """A folder of maps, one for each photograph: of class numbers, or of Cityscapes' instance ids."""

    folder: str
    suffix: str
    """Replaces the photograph's own suffix."""
    first: int = 0
    """The number of the first class; pixels with smaller numbers do not count."""


class PanopticFiles(NamedTuple):
    """A panoptic annotation in COCO's format."""

    json: str
    pngs: tuple[str, ...]
    """Folders to try in this order, since archives unpack to different places."""
    image_name: str | None = None
    """Formats an image's id as its file name, where the json names files that do not exist."""


class Benchmark(NamedTuple):
    """One dataset; paths are relative to its own folder, in its official layout."""

    title: str
    folder: str
    """The name of its own folder, inside the folder of all datasets."""
    images: str
    vocabulary: str
    number: int
    """The official number of images."""
    image_suffix: str = ".jpg"
    panoptic: PanopticFiles | None = None
    labels: MapFiles | None = None
    """None derives classes from the panoptic segments."""
    instances: str | None = None
    """Instance annotations in COCO's json format."""
    instance_ids: MapFiles | None = None
    """Instance annotations in Cityscapes' format, *_instanceIds.png."""
    prepared_by: str = ""
    """The command that makes the files that the official download does not contain."""
    count_file: str | None = None
    """Written last by this command, with the number of images; for datasets without a json that lists them."""
    short_side: int = SHORT_SIDE
    max_side: int = MAX_SIDE

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the dataset is annotated for."""
        annotated = {"panoptic": self.panoptic, "semantic": True, "instances": self.instances or self.instance_ids}
        return tuple(task for task in TASKS if annotated[task])


def _panoptic_files(layout: Layout) -> PanopticFiles:
    return PanopticFiles(layout.json, layout.pngs)


_COCO, _ADE20K = DATASETS["coco_panoptic"]["val"], DATASETS["ade20k_panoptic"]["val"]

BENCHMARKS: dict[str, Benchmark] = {
    "coco": Benchmark(
        title="COCO",
        folder=FOLDERS["coco_panoptic"],
        images=_COCO.images,
        vocabulary=_COCO.vocabulary,
        number=5000,
        panoptic=_panoptic_files(_COCO),
        instances="annotations/instances_val2017.json",
    ),
    "ade20k": Benchmark(
        title="ADE20K",
        folder=FOLDERS["ade20k_panoptic"],
        images=_ADE20K.images,
        vocabulary=_ADE20K.vocabulary,
        number=2000,
        panoptic=_panoptic_files(_ADE20K),
        labels=MapFiles("annotations/validation", ".png", first=1),
        instances="ade20k_instance_val.json",
        prepared_by="fcclip annotate ade20k",
    ),
    "cityscapes": Benchmark(
        title="Cityscapes",
        folder="cityscapes",
        images="leftImg8bit/val",
        vocabulary="cityscapes",
        number=500,
        image_suffix="_leftImg8bit.png",
        panoptic=PanopticFiles(
            "gtFine/cityscapes_panoptic_val.json", ("gtFine/cityscapes_panoptic_val",), "{}_leftImg8bit.png"
        ),
        labels=MapFiles("gtFine/val", "_gtFine_labelTrainIds.png"),
        instance_ids=MapFiles("gtFine/val", "_gtFine_instanceIds.png"),
        prepared_by="fcclip annotate cityscapes",
        short_side=1024,
        max_side=2560,
    ),
    "mapillary": Benchmark(
        title="Mapillary Vistas",
        folder="mapillary_vistas",
        images="validation/images",
        vocabulary="mapillary_vistas",
        number=2000,
        panoptic=PanopticFiles("validation/panoptic/panoptic_2018.json", ("validation/panoptic",)),
        labels=MapFiles("validation/labels", ".png"),
        short_side=1024,
        max_side=2560,
    ),
    "ade20k_847": Benchmark(
        title="A-847",
        folder="ADE20K_2021_17_01",
        images="images_detectron2/validation",
        vocabulary="ade20k_847",
        number=2000,
        labels=MapFiles("annotations_detectron2/validation", ".tif"),
        prepared_by="fcclip annotate ade20k_full",
        count_file="prepared_val.json",
    ),
    "pascal_context_459": Benchmark(
        title="PC-459",
        folder="pascal_ctx_d2",
        images="images/validation",
        vocabulary="pascal_context_459",
        number=5104,
        labels=MapFiles("annotations_ctx459/validation", ".tif"),
        prepared_by="fcclip annotate pascal_context",
        count_file="prepared_val.json",
    ),
    "pascal_context_59": Benchmark(
        title="PC-59",
        folder="pascal_ctx_d2",
        images="images/validation",
        vocabulary="pascal_context_59",
        number=5104,
        labels=MapFiles("annotations_ctx59/validation", ".png"),
        prepared_by="fcclip annotate pascal_context",
        count_file="prepared_val.json",
    ),
    "pascal_voc_21": Benchmark(
        title="PAS-21",
        folder="pascal_voc_d2",
        images="images/validation",
        vocabulary="pascal_voc_21",
        number=1449,
        labels=MapFiles("annotations_pascal21/validation", ".png"),
        prepared_by="fcclip annotate pascal_voc",
        count_file="prepared_val.json",
    ),
    "pascal_voc_20": Benchmark(
        title="PAS-20",
        folder="pascal_voc_d2",
        images="images/validation",
        vocabulary="pascal_voc_20",
        number=1449,
        labels=MapFiles("annotations_pascal20/validation", ".png"),
        prepared_by="fcclip annotate pascal_voc",
        count_file="prepared_val.json",
    ),
}
