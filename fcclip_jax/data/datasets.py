"""Opens datasets by name, from a table of the locations of their files."""

import difflib
from typing import NamedTuple

from etils import epath

from fcclip_jax.data.folder import FolderDataset
from fcclip_jax.data.records import Dataset
from fcclip_jax.text.vocabulary import Vocabulary


class Layout(NamedTuple):
    """One split of a dataset in COCO's panoptic format; paths are relative to the dataset's own folder."""

    images: str
    json: str
    pngs: tuple[str, ...]
    """The first folder that exists is used, since archives unpack to different places."""
    vocabulary: str


CUSTOM = "custom"
"""The name of a dataset that is given by its three paths; the vocabulary is its json's categories."""

FOLDERS = {"coco_panoptic": "coco", "ade20k_panoptic": "ADEChallengeData2016"}
"""The name of each dataset's folder, as in detectron2."""

DATASETS: dict[str, dict[str, Layout]] = {
    # The official folder, with panoptic_{train,val}2017.zip unpacked next to it or in annotations/.
    "coco_panoptic": {
        split: Layout(
            images=f"{split}2017",
            json=f"annotations/panoptic_{split}2017.json",
            pngs=(f"annotations/panoptic_{split}2017", f"panoptic_{split}2017"),
            vocabulary="coco_panoptic",
        )
        for split in ("train", "val")
    },
    # ADEChallengeData2016, with the panoptic annotations that `fcclip annotate ade20k` or detectron2's scripts add.
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
    """Opens a dataset, either a folder or prepared.

    name: one of DATASETS, or "custom".
    root: the dataset's folder, or the folder that contains it; or a folder that `fcclip prepare` or TFDS
        (coco/2017_panoptic) wrote.
    split: "train" or "val".
    images, panoptic_json, panoptic_pngs: the paths of a custom dataset that is not prepared.

    Raises:
        ValueError: no dataset or split has that name, paths are not given, or the annotation is invalid.
        FileNotFoundError: a folder or a file does not exist.
    """
    if name != CUSTOM and name not in DATASETS:
        close = difflib.get_close_matches(name, [*DATASETS, CUSTOM], n=1, cutoff=0.3)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"{name!r} is not a dataset{hint}; choose one of {', '.join(DATASETS)} or {CUSTOM}")
    folder = None if root is None else _own_folder(name, epath.Path(root).expanduser())
    if folder and is_prepared(folder):
        from fcclip_jax.data.prepared import PreparedDataset  # imports TFDS, which takes a second

        return PreparedDataset(folder, split)
    if name == CUSTOM:
        if images is None or panoptic_json is None or panoptic_pngs is None:
            raise ValueError(
                "a custom dataset needs images, panoptic_json and panoptic_pngs, or the root of a prepared dataset; got"
                f" {images}, {panoptic_json}, {panoptic_pngs} and {root}"
            )
        return FolderDataset(images, panoptic_json, panoptic_pngs)
    return open_folder(name, root, split)


def open_folder(name: str, root: epath.PathLike | None, split: str) -> FolderDataset:
    """Opens one of DATASETS that is not prepared; arguments and errors are those of `open_dataset`."""
    if split not in DATASETS[name]:
        raise ValueError(f"{name} has no split {split!r}, only {', '.join(DATASETS[name])}")
    layout = DATASETS[name][split]
    folder = None if root is None else _own_folder(name, epath.Path(root).expanduser())
    if not folder or not folder.is_dir():
        raise FileNotFoundError(f"{name} has no folder at {root}; give the folder that contains {layout.json}")
    pngs = next((path for path in layout.pngs if (folder / path).is_dir()), layout.pngs[0])
    vocabulary = Vocabulary.load(layout.vocabulary)
    return FolderDataset(folder / layout.images, folder / layout.json, folder / pngs, vocabulary)


def is_at(name: str, root: epath.PathLike) -> bool:
    """Returns whether the root has a part of one of DATASETS, as its archives unpack, or is prepared."""
    folder = _own_folder(name, epath.Path(root).expanduser())
    parts = {path for layout in DATASETS[name].values() for path in (layout.images, layout.json, *layout.pngs)}
    return is_prepared(folder) or any((folder / path.partition("/")[0]).exists() for path in parts)


def is_prepared(folder: epath.Path) -> bool:
    """Returns whether the folder is a finished TFDS dataset: its dataset_info.json is written last."""
    return (folder / "dataset_info.json").exists()


def _own_folder(name: str, root: epath.Path) -> epath.Path:
    inside = root / FOLDERS.get(name, ".")
    return inside if inside.is_dir() else root
