"""Finds and reads the files of a folder, and builds the description of the model in a json."""

import json
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fcclip_jax.conventions import STRIDE
from fcclip_jax.inference.postprocess import MAX_INSTANCES
from fcclip_jax.models.descriptions import (
    ClipDescription,
    ConvNeXtDescription,
    EnsembleDescription,
    HeadDescription,
    ModelDescription,
    ResNetDescription,
    TextDescription,
)
from fcclip_jax.models.fcclip import PIXEL_MEAN, PIXEL_STD
from fcclip_jax.text.vocabulary import Vocabulary, VocabularyClass

ARCHITECTURE, OVRCOAT = "FCCLIP", "OVRCOAT"
"""The models that are compared, by a json's `meta_architecture`, the first if it has none."""

EXTRAS = ("semantic_only", "batch_mixed")


class BadFiles(ValueError):
    """An invalid folder; the message is one sentence for the user."""


class Pair(NamedTuple):
    """One json and the arrays of the same name."""

    name: str
    """The path inside the folder, without a suffix."""
    path: pathlib.Path
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def require(self, *keys: str) -> Any:
        """Returns a value of the json, by its path of keys."""
        value: Any = self.facts
        for i, key in enumerate(keys):
            if not isinstance(value, dict) or key not in value:
                raise BadFiles(f"{self.path} has no {'.'.join(keys[: i + 1])}; the model cannot be built without it")
            value = value[key]
        return value


class Files(NamedTuple):
    """The files of a folder."""

    pairs: list[Pair]
    """X_eval: each describes a model."""
    trainings: list[Pair]
    """X_train: training steps of the model of X_eval."""
    extras: list[Pair]
    """More photographs for these models."""
    others: dict[pathlib.Path, str]
    """Files that are not compared, and the reason."""


def find_pairs(folder: pathlib.Path) -> Files:
    if not folder.is_dir():
        raise BadFiles(f"the folder {folder} does not exist; give one that holds X_eval.json and X_eval.npz")
    stems = sorted({path.with_suffix("") for suffix in ("json", "npz") for path in folder.rglob(f"*_eval.{suffix}")})
    models = {stem: read_json(stem.with_suffix(".json")).get("meta_architecture", ARCHITECTURE) for stem in stems}
    foreign = {stem: f"its model is {model}" for stem, model in models.items() if model not in (ARCHITECTURE, OVRCOAT)}
    stems = [stem for stem in stems if stem not in foreign]
    if not stems:
        raise BadFiles(
            f"{folder} holds no X_eval.json of an FC-CLIP with an X_eval.npz: there is nothing to compare with"
        )
    trainings = [stem.with_name(f"{stem.name.removesuffix('_eval')}_train") for stem in stems]
    trainings = [stem for stem in trainings if stem.with_suffix(".npz").exists()]
    extras = [path.with_suffix("") for name in EXTRAS for path in sorted(folder.rglob(f"{name}.npz"))]
    known = {*stems, *trainings, *extras}
    others = {path.with_suffix(""): "holds no outputs of a model" for path in sorted(folder.rglob("*.npz"))}
    others = {stem: reason for stem, reason in (others | foreign).items() if stem not in known}
    loaded = ([_load(folder, stem) for stem in group] for group in (stems, trainings, extras))
    return Files(*loaded, others)


def _load(folder: pathlib.Path, stem: pathlib.Path) -> Pair:
    facts = read_json(stem.with_suffix(".json"))
    path = stem.with_suffix(".npz")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as members:
            arrays = {name: members[name] for name in members.files}
    except FileNotFoundError:
        raise BadFiles(f"{path.name} is missing next to {stem.with_suffix('.json')}") from None
    except (OSError, ValueError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise BadFiles(f"{path} is not an npz file of plain arrays: {error}") from error
    return Pair(stem.relative_to(folder).as_posix(), stem.with_suffix(".json"), facts, arrays)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BadFiles(f"{path.name} is missing in {path.parent}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadFiles(f"{path} is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise BadFiles(f"{path} holds no JSON object")
    return facts


def read_manifest(pair: Pair) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every key of the pair's checkpoint."""
    path = pair.path.with_name(f"manifest_{pair.path.stem.removesuffix('_eval')}.json")
    try:
        return {entry["key"]: tuple(map(int, entry["shape"])) for entry in read_json(path)["entries"]}
    except (KeyError, TypeError, ValueError) as error:
        raise BadFiles(f"{path} does not list keys and shapes as entries: {error!r}") from error


def describe(pair: Pair) -> ModelDescription:
    """Returns the description of the pair's model."""
    _check_constants(pair)
    try:
        return _describe(pair)
    except BadFiles:
        raise
    except KeyError as error:
        raise BadFiles(
            f"{pair.path} has no {error} in its configuration; the model cannot be built without it"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BadFiles(f"{pair.path} does not describe a model: {error}") from error


def _describe(pair: Pair) -> ModelDescription:
    embed_dim = pair.require("open_clip_cfg", "embed_dim")
    vision = pair.require("open_clip_cfg", "vision_cfg")
    text = pair.require("open_clip_cfg", "text_cfg")
    if "timm_model_name" in vision:
        image = ConvNeXtDescription(
            depths=tuple(pair.require("trunk", "depths")),
            dims=tuple(pair.require("trunk", "dims")),
            embed_dim=embed_dim,
            head=vision["timm_proj"],
            norm_eps=1e-5 if "xxlarge" in vision["timm_model_name"] else 1e-6,
        )
    else:
        size = vision["image_size"]
        image = ResNetDescription(
            layers=tuple(vision["layers"]), width=vision["width"], image_size=size, embed_dim=embed_dim
        )
    former = pair.require("model_cfg", "MASK_FORMER")
    head = pair.require("model_cfg", "SEM_SEG_HEAD")
    mixing = pair.require("model_cfg", "FC_CLIP")
    return ModelDescription(
        clip=ClipDescription(
            image=image,
            text=TextDescription(
                width=text["width"],
                heads=text["heads"],
                layers=text["layers"],
                embed_dim=embed_dim,
                quick_gelu=pair.facts["open_clip_cfg"].get("quick_gelu", False),
                context_length=text["context_length"],
                vocab_size=text["vocab_size"],
            ),
        ),
        head=HeadDescription(
            hidden_dim=former["HIDDEN_DIM"],
            mask_dim=head["MASK_DIM"],
            heads=former["NHEADS"],
            encoder_layers=head["TRANSFORMER_ENC_LAYERS"],
            decoder_layers=former["DEC_LAYERS"] - 1,  # it counts the prediction from the learned queries
            decoder_ffn_dim=former["DIM_FEEDFORWARD"],
            num_queries=former["NUM_OBJECT_QUERIES"],
        ),
        ensemble=EnsembleDescription(
            alpha=mixing["GEOMETRIC_ENSEMBLE_ALPHA"],
            beta=mixing["GEOMETRIC_ENSEMBLE_BETA"],
            valid_masks_only=mixing["ENSEMBLE_ON_VALID_MASK"],
        ),
    )


def _check_constants(pair: Pair) -> None:
    """Checks the values that the official code configures and this project keeps constant."""
    constants = (
        (("PIXEL_MEAN",), PIXEL_MEAN),
        (("PIXEL_STD",), PIXEL_STD),
        (("DETECTIONS_PER_IMAGE",), MAX_INSTANCES),
        (("MASK_FORMER", "SIZE_DIVISIBILITY"), STRIDE),
        (("SEM_SEG_HEAD", "CONVS_DIM"), pair.require("model_cfg", "MASK_FORMER", "HIDDEN_DIM")),
    )
    for keys, ours in constants:
        theirs = pair.require("model_cfg", *keys)
        if np.shape(theirs) != np.shape(ours) or not np.allclose(theirs, ours, rtol=1e-6):
            raise BadFiles(f"{pair.path} has model_cfg.{'.'.join(keys)} = {theirs}; this model supports only {ours}")


def vocabulary(pair: Pair, key: str) -> Vocabulary:
    """Reads `test_classes` or `train_classes`, [["cat,kitten", 1], ...], split as the official code splits them."""
    try:
        rows = [(names.replace(", ", ",").split(","), bool(thing)) for names, thing in pair.require(key)]
    except (TypeError, ValueError, AttributeError) as error:
        raise BadFiles(f"{pair.path} does not list {key} as pairs of names and thing flags: {error}") from error
    if key == "test_classes" and "thing_ids_test" in pair.facts:
        things = set(pair.facts["thing_ids_test"])
        rows = [(names, i in things) for i, (names, _) in enumerate(rows)]
    return Vocabulary(key, tuple(VocabularyClass(tuple(n), thing, (0, 0, 0), i) for i, (n, thing) in enumerate(rows)))


def size(pair: Pair, value: Sequence[int]) -> tuple[int, int]:
    """Returns a (height, width) of the json."""
    match value:
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
    raise BadFiles(f"{pair.path} gives a size as {value!r}, which is not a pair of positive whole numbers")
