"""The datasets that are known by name: where their files lie."""

import difflib
from typing import NamedTuple

from etils import epath

from fcclip_jax.data.folder import Dataset, FolderDataset
from fcclip_jax.text.vocabulary import Vocabulary


class Layout(NamedTuple):
    """One split of a dataset in COCO's panoptic format; paths are relative to the dataset's own folder."""

    images: str
    json: str
    pngs: tuple[str, ...]
    """The first that is there: archives unpack to different places."""
    vocabulary: str


CUSTOM = "custom"
"""The name of a dataset that is given by its three paths; its own categories are the vocabulary."""

FOLDERS = {"coco_panoptic": "coco", "ade20k_panoptic": "ADEChallengeData2016"}
"""What the dataset's own folder is called beside others; detectron2's names."""

DATASETS: dict[str, dict[str, Layout]] = {
    # The official folder, with panoptic_{train,val}2017.zip unpacked beside it or in annotations/.
    "coco_panoptic": {
        split: Layout(
            images=f"{split}2017",
            json=f"annotations/panoptic_{split}2017.json",
            pngs=(f"annotations/panoptic_{split}2017", f"panoptic_{split}2017"),
            vocabulary="coco_panoptic",
        )
        for split in ("train", "val")
    },
    # ADEChallengeData2016, with what detectron2's preparation of panoptic annotations adds.
    "ade20k_panoptic": {
        split: Layout(
            images=f"images/{folder}",
            json=f"ade20k_panoptic_{split}.json",
            pngs=(f"ade20k_panoptic_{split}",),
            vocabulary="ade20k_150",
        )
        for split, folder in (("train", "training"), ("val", "validation"))
    },
}


def open_dataset(
    name: str,
    root: epath.PathLike | None = None,
    split: str = "train",
    *,
    images: epath.PathLike | None = None,
    panoptic_json: epath.PathLike | None = None,
    panoptic_pngs: epath.PathLike | None = None,
) -> Dataset:
    """Opens a dataset, as a folder or prepared.

    name: one of DATASETS, or "custom".
    root: the dataset's own folder, or the one that it lies in; or what `fcclip prepare` or TFDS (coco/2017_panoptic) wrote.
    split: "train" or "val".
    images, panoptic_json, panoptic_pngs: the paths of a custom dataset that is not prepared.

    Raises:
        ValueError: there is no such dataset or split, paths are missing, or the annotation is not as it should be.
        FileNotFoundError: a folder or a file is not there.
    """
    if name != CUSTOM and name not in DATASETS:
        close = difflib.get_close_matches(name, [*DATASETS, CUSTOM], n=1, cutoff=0.3)
        hint = f"did you mean {close[0]}? There are" if close else "there are"
        raise ValueError(f"no dataset is called {name!r}: {hint} {', '.join(DATASETS)} and {CUSTOM}")
    folder = None if root is None else _own_folder(name, epath.Path(root).expanduser())
    if folder and is_prepared(folder):
        from fcclip_jax.data.prepared import PreparedDataset  # imports TFDS, which takes a second

        return PreparedDataset(folder, split)
    if name == CUSTOM:
        if images is None or panoptic_json is None or panoptic_pngs is None:
            raise ValueError(
                "a custom dataset is given by its images, panoptic_json and panoptic_pngs, or by the root of a prepared"
                f" one; got {images}, {panoptic_json}, {panoptic_pngs} and {root}"
            )
        return FolderDataset(images, panoptic_json, panoptic_pngs)
    return open_folder(name, root, split)


def open_folder(name: str, root: epath.PathLike | None, split: str) -> FolderDataset:
    """The same for one of DATASETS that is not prepared."""
    if split not in DATASETS[name]:
        raise ValueError(f"{name} has no split {split!r}, only {', '.join(DATASETS[name])}")
    layout = DATASETS[name][split]
    folder = None if root is None else _own_folder(name, epath.Path(root).expanduser())
    if not folder or not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of {name} at {root}; give one that holds {layout.json}")
    pngs = next((path for path in layout.pngs if (folder / path).is_dir()), layout.pngs[0])
    vocabulary = Vocabulary.load(layout.vocabulary)
    return FolderDataset(folder / layout.images, folder / layout.json, folder / pngs, vocabulary)


def is_prepared(folder: epath.Path) -> bool:
    """Whether TFDS' record of a finished dataset is there; it is written last."""
    return (folder / "dataset_info.json").exists()


def _own_folder(name: str, root: epath.Path) -> epath.Path:
    inside = root / FOLDERS.get(name, ".")
    return inside if inside.is_dir() else root
