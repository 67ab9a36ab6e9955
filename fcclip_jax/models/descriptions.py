"""Descriptions of models: sizes only. No other module finds a model by its name.

The CLIP sizes are OpenCLIP's model configurations; the head's are the official configs/coco/panoptic-segmentation yaml.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Literal

from fcclip_jax.conventions import END_ID, INSTANCE_THRESHOLD, MAX_SIDE, OVERLAP_THRESHOLD, SHORT_SIDE, START_ID, TASKS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNeXtDescription:
    """A ConvNeXt trunk (timm) under a CLIP projection."""

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    embed_dim: int
    head: Literal["mlp", "linear"]
    """mlp: a hidden layer of 2 x embed_dim (the `_d` models); linear: one matrix."""
    norm_eps: float = 1e-6
    kernel_sizes: tuple[int, int, int, int] = dataclasses.field(default=(7, 7, 7, 7), repr=False)
    """The sides of each stage's depthwise kernels, which are odd. Not in the repr, from which the logs of earlier
    evaluations computed their checksum of the model."""
    family: Literal["convnext"] = "convnext"

    def __post_init__(self):
        if any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes are {self.kernel_sizes}; give positive odd numbers")

    @property
    def feature_dims(self) -> tuple[int, int, int, int]:
        return self.dims


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetDescription:
    """CLIP's modified ResNet: three-convolution stem, anti-aliased strides, attention pooling."""

    layers: tuple[int, int, int, int]
    width: int
    image_size: int
    embed_dim: int
    family: Literal["resnet"] = "resnet"

    @property
    def feature_dims(self) -> tuple[int, int, int, int]:
        return tuple(self.width * 4 * 2**i for i in range(4))

    @property
    def heads(self) -> int:
        return self.width * 32 // 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTDescription:
    """CLIP's vision transformer. It has one stride, so that it cannot be the trunk of a mask decoder."""

    width: int
    layers: int
    heads: int
    image_size: int
    """Side in pixels of the images for which the table of positions is; it is resized for others."""
    embed_dim: int
    patch_size: int = 16
    family: Literal["vit"] = "vit"

    def __post_init__(self):
        _check_heads(self.width, self.heads)
        if self.patch_size not in (8, 16, 32) or self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size is {self.patch_size} and image_size {self.image_size}; patches must have 8, 16 or 32 pixels,"
                " and images a multiple of them"
            )


ImageDescription = ConvNeXtDescription | ResNetDescription | ViTDescription


def _check_heads(width: int, heads: int) -> None:
    if heads < 1 or width < 1 or width % heads:
        raise ValueError(f"a width of {width} cannot be split among {heads} heads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDescription:
    """CLIP's text transformer."""

    width: int
    heads: int
    layers: int
    embed_dim: int
    quick_gelu: bool
    """True if x * sigmoid(1.702 x) replaces the exact GELU: a property of the weights (OpenAI's)."""
    context_length: int = 77
    vocab_size: int = 49408
    """The number of rows in the table of token embeddings."""
    token_ids: tuple[int, ...] | None = dataclasses.field(default=None, repr=False)
    """The tokens that the table has rows for, sorted by CLIP's ids; None if the ids are the rows. Not in the repr, for
    the reason given at `kernel_sizes`."""

    def __post_init__(self):
        _check_heads(self.width, self.heads)
        ids = self.token_ids
        if ids is None:
            return
        if len(ids) != self.vocab_size:
            raise ValueError(f"token_ids are {len(ids)}, but vocab_size is {self.vocab_size}; they must be equal")
        # The end token must have the last row: the tower finds it by its number, the largest in a text.
        if list(ids) != sorted(set(ids)) or ids[0] != 0 or ids[-2:] != (START_ID, END_ID):
            raise ValueError(
                f"token_ids must ascend, begin with 0, which is the padding, and end with {START_ID} and {END_ID}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadDescription:
    """The trainable part: pixel decoder and mask decoder."""

    hidden_dim: int = 256
    mask_dim: int = 256
    heads: int = 8
    encoder_layers: int = 6
    encoder_ffn_dim: int = 1024
    sampling_points: int = 4
    decoder_layers: int = 9
    decoder_ffn_dim: int = 2048
    num_queries: int = 250

    def __post_init__(self):
        _check_heads(self.hidden_dim, self.heads)
        if self.hidden_dim % 32 or self.mask_dim < 1 or self.num_queries < 1:
            raise ValueError(
                f"hidden_dim is {self.hidden_dim}, mask_dim {self.mask_dim}, num_queries {self.num_queries}; hidden_dim"
                " must be a multiple of 32, the others at least 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleDescription:
    """The mixture of in- and out-of-vocabulary scores (equation 7)."""

    alpha: float = 0.4
    """Weight of the out-of-vocabulary scores for classes seen in training."""
    beta: float = 0.8
    """Weight of the out-of-vocabulary scores for all other classes."""
    mode: Literal["geometric", "arithmetic"] = "geometric"
    valid_masks_only: bool = False
    """True gives queries whose mask is empty at stride 32 their in-vocabulary scores alone (all ResNet models)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefaultsDescription:
    """How the model segments photographs unless the user says otherwise. The official values are the defaults."""

    short_side: int = SHORT_SIDE
    max_side: int = MAX_SIDE
    """Images are resized to this shorter side in pixels, or smaller, so that the longer side is at most `max_side`."""
    overlap_threshold: float = OVERLAP_THRESHOLD
    """The minimum share of its own mask that a panoptic segment keeps."""
    instance_threshold: float = INSTANCE_THRESHOLD
    """The minimum score of an instance that `fcclip segment` draws and writes."""
    panoptic_void_trust: float = 0.0
    semantic_void_trust: float = 0.0
    instance_void_trust: float = 0.0
    """The `void_trust` of each task's class scores (`models.classifiers.ensemble`)."""
    instance_scores: Literal["mask_probability", "mask_logit"] = "mask_probability"
    """What multiplies an instance's class score: the mean probability inside its mask, or the mean logit (OVRCOAT's
    backbone_training/inference_utils.py), with which scores exceed 1."""

    def __post_init__(self):
        shares = self.overlap_threshold, self.instance_threshold, *self.void_trust.values()
        if not 1 <= self.short_side <= self.max_side or not all(0 <= value <= 1 for value in shares):
            raise ValueError(
                f"{self} does not fit; choose 1 <= short_side <= max_side, and thresholds and void_trust from 0 to 1"
            )

    @property
    def void_trust(self) -> dict[str, float]:
        """The `void_trust` of each task."""
        values = self.panoptic_void_trust, self.semantic_void_trust, self.instance_void_trust
        return dict(zip(TASKS, values, strict=True))

    def choose_void_trust(self, chosen: float | Mapping[str, float] | None) -> dict[str, float]:
        """Returns the `void_trust` of each task: the user's choice, or else the default.

        chosen: by task; a number is for panoptic results alone, because AP and mIoU fall with it.

        Raises:
            ValueError: a task does not exist, or a number is not from 0 to 1.
        """
        chosen = {TASKS[0]: chosen} if isinstance(chosen, (int, float)) else chosen or {}
        for task, value in chosen.items():
            if task not in TASKS or not 0 <= value <= 1:
                raise ValueError(
                    f"void_trust is {value} for {task}: choose numbers from 0 to 1 for {', '.join(TASKS)}, or one for panoptic"
                )
        return {**self.void_trust, **chosen}


OFFICIAL_DEFAULTS = DefaultsDescription()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipDescription:
    """Both towers of a CLIP model."""

    image: ImageDescription
    text: TextDescription


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A whole FC-CLIP."""

    clip: ClipDescription
    head: HeadDescription = HeadDescription()
    ensemble: EnsembleDescription = EnsembleDescription()
    defaults: DefaultsDescription = dataclasses.field(default=OFFICIAL_DEFAULTS, repr=False)
    """Not in the repr, for the reason given at `ConvNeXtDescription.kernel_sizes`."""


def _convnext(depths, dims, embed_dim, head, text_heads, text_layers, norm_eps=1e-6) -> ClipDescription:
    return ClipDescription(
        image=ConvNeXtDescription(depths=depths, dims=dims, embed_dim=embed_dim, head=head, norm_eps=norm_eps),
        text=TextDescription(
            width=embed_dim, heads=text_heads, layers=text_layers, embed_dim=embed_dim, quick_gelu=False
        ),
    )


def _resnet(layers, width, image_size, embed_dim, text_width) -> ClipDescription:
    return ClipDescription(
        image=ResNetDescription(layers=layers, width=width, image_size=image_size, embed_dim=embed_dim),
        text=TextDescription(
            width=text_width, heads=text_width // 64, layers=12, embed_dim=embed_dim, quick_gelu=False
        ),
    )


_BASE = ((3, 3, 27, 3), (128, 256, 512, 1024))
_LARGE = ((3, 3, 27, 3), (192, 384, 768, 1536))

CLIP_MODELS: dict[str, ClipDescription] = {
    "convnext_base": _convnext(*_BASE, 512, "linear", 8, 12),
    "convnext_base_w": _convnext(*_BASE, 640, "linear", 10, 12),
    "convnext_base_w_320": _convnext(*_BASE, 640, "linear", 10, 12),
    "convnext_large_d": _convnext(*_LARGE, 768, "mlp", 12, 16),
    "convnext_large_d_320": _convnext(*_LARGE, 768, "mlp", 12, 16),
    "convnext_xxlarge": _convnext((3, 4, 30, 3), (384, 768, 1536, 3072), 1024, "linear", 16, 24, 1e-5),
    "RN50": _resnet((3, 4, 6, 3), 64, 224, 1024, 512),
    "RN101": _resnet((3, 4, 23, 3), 64, 224, 512, 512),
    "RN50x4": _resnet((4, 6, 10, 6), 80, 288, 640, 640),
    "RN50x16": _resnet((6, 8, 18, 8), 96, 384, 768, 768),
    "RN50x64": _resnet((3, 15, 36, 10), 128, 448, 1024, 1024),
}


SMALL = ModelDescription(
    clip=ClipDescription(
        image=ConvNeXtDescription(depths=(2, 2, 4, 2), dims=(32, 64, 128, 256), embed_dim=64, head="mlp"),
        text=TextDescription(width=64, heads=2, layers=2, embed_dim=64, quick_gelu=False),
    ),
    head=HeadDescription(
        hidden_dim=64,
        mask_dim=64,
        encoder_layers=2,
        encoder_ffn_dim=128,
        decoder_layers=3,
        decoder_ffn_dim=128,
        num_queries=50,
    ),
)
"""A whole FC-CLIP small enough for a laptop, to try things out with random weights or a short training."""


def clip_description(name: str, *, quick_gelu: bool = False) -> ClipDescription:
    """Returns the towers of an OpenCLIP model by its name, which may end in -quickgelu.

    Raises:
        ValueError: the name is unknown, or a ConvNeXt is requested with QuickGELU, which none was trained with.
    """
    base = name.removesuffix("-quickgelu")
    quick_gelu = quick_gelu or base != name
    if base not in CLIP_MODELS:
        close = difflib.get_close_matches(base, CLIP_MODELS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown CLIP model {name!r}; {hint}choose from {', '.join(CLIP_MODELS)}")
    description = CLIP_MODELS[base]
    if not quick_gelu:
        return description
    if description.image.family == "convnext":
        raise ValueError(f"{name!r} has exact GELU: no ConvNeXt CLIP was trained with QuickGELU; remove --quick-gelu")
    return dataclasses.replace(description, text=dataclasses.replace(description.text, quick_gelu=True))


def fcclip_description(clip: ClipDescription) -> ModelDescription:
    """Adds the official head and ensemble to a CLIP model (configs/coco/panoptic-segmentation/fcclip/*.yaml)."""
    return ModelDescription(clip=clip, ensemble=EnsembleDescription(valid_masks_only=clip.image.family == "resnet"))
