"""Compares the arrays of `X_eval` with this model's."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fcclip_jax import command_line
from fcclip_jax.inference.resampling import resize_taps
from fcclip_jax.models.pixel_decoder import LEVEL_STRIDES
from fcclip_jax.text.tokenizer import tokenize
from tests.parity import judge
from tests.parity.forcing import recorded_masks, reruns, shrunk
from tests.parity.network import Heads, Network, Outcome, Size, larger_bucket
from tests.parity.pairs import Pair, size
from tests.parity.section import Section

IMAGE, CRAFTED, MADE_UP = (
    ("image_u8",),
    ("crafted_mask_cls", "crafted_mask_pred"),
    ("cf_pred_masks", "cf_pred_logits", "cf_clip_vis_dense"),
)
INPUTS = {*IMAGE, *CRAFTED, *MADE_UP}

OUTPUTS = r"(sem_seg|panoptic_seg|instances_(scores|classes|masks))"
STAGES = re.compile(r"input_padded|backbone_|pd_|dec\d|out_vocab_")
KINDS = re.compile(
    "|".join(
        (
            r"(test|train)_(tokens|text_features_raw)|text_classifier_(test|train|with_void)|num_templates",
            r"void_embedding_normalized|category_overlapping_mask|input_padded",
            r"backbone_(stem|res[2-5]|clip_vis_dense)",
            r"pd_(input_proj_\d+|enc_(src|pos|ref_points|spatial_shapes)|enc\d+_(msdeform_)?out)",
            r"pd_(adapter_1|layer_1|mask_features|multi_scale_\d+)",
            r"dec\d+_(after_(cross|self)_attn|output|mask_embed|mask_pooled_(in_vocab|proj)|class_embed)",
            r"dec\d+_(pred_(logits|masks)|attn_mask_head0)",
            r"out_vocab_(mask_pooled|mask_for_pooling|clip_feature|logits)|final_mask_(cls_log_probs|pred_logits)",
            rf"{OUTPUTS}|crafted_(semantic|{OUTPUTS})",
            rf"cf_valid[01]_(mask_pooled|clip_feature|out_vocab_logits|mask_cls_log_probs|{OUTPUTS})",
        )
    )
)


class Found(NamedTuple):
    """This model's arrays under the official names: stages, and outcomes by the prefix of their names."""

    arrays: dict[str, np.ndarray]
    outcomes: dict[str, Outcome]
    failures: Mapping[str, str] = {}
    """Messages of programs that did not compile or run, by their names."""


def bucket_of(pair: Pair) -> Size:
    """Returns the bucket that all photographs and crafted head outputs of a pair share."""
    held = [size(pair, pair.facts[key]) for key in ("image_hw", "cf_image_hw") if key in pair.facts]
    held += [pair.arrays[name].shape[:2] for name in IMAGE if name in pair.arrays]
    return larger_bucket(held) if held else larger_bucket([(1, 1)])


def compare_pair(pair: Pair, network: Network, tolerance: float) -> Section:
    section = Section(pair.name, pair.arrays, network, tolerance)
    found = find(pair, network)
    fill(section, pair, found)
    for name, message in found.failures.items():
        section.add(judge.Verdict(name, (), False, None, message))
    if held(pair, IMAGE) and section.short(depends_on_image):
        excuse(section, pair, network)
    section.close([name for name in pair.arrays if name not in INPUTS], lambda name: reason(name, pair))
    return section


def find(pair: Pair, network: Network) -> Found:
    """Computes this model's counterpart of each array in the pair."""
    arrays, outcomes, failures = text_arrays(network), {}, {}
    if held(pair, IMAGE):
        image = pair.arrays["image_u8"]
        if any(STAGES.match(name) for name in pair.arrays):
            arrays |= network.stages(image, {})
        if wants_outcome(pair, ""):
            photo = (image, output_size(pair, "output_hw", image))
            (outcomes[""],) = network.segment([photo], bucket=bucket_of(pair))
    if held(pair, CRAFTED) and wants_outcome(pair, "crafted_"):
        outcomes["crafted_"] = crafted(pair, network)
    for valid in (False, True):
        prefix = f"cf_valid{valid:d}_"
        if held(pair, MADE_UP) and any(name.startswith(prefix) for name in (*pair.arrays, *pair.facts)):
            try:
                views, outcomes[prefix] = made_up(pair, network, valid)
            except jax.errors.JaxRuntimeError as error:
                failures[f"{prefix}program"] = command_line.first_line(error)
                continue
            views["out_vocab_logits"] = views.pop("logits")
            arrays |= {prefix + name: value for name, value in views.items()}
    return Found(arrays, outcomes, failures)


def wants_outcome(pair: Pair, prefix: str) -> bool:
    """Returns whether the pair has an array that is computed from the masks at the output's size."""
    names = re.compile(rf"{prefix}({OUTPUTS}|semantic|segments_info)" + ("" if prefix else r"|final_\w+"))
    return any(names.fullmatch(name) for name in (*pair.arrays, *pair.facts))


def excuse(section: Section, pair: Pair, network: Network) -> None:
    """Runs the image again with other signs of mask logits near zero, for arrays that failed."""
    image = pair.arrays["image_u8"]
    sizes = [image.shape[:2]], [output_size(pair, "output_hw", image)]
    last = network.description.head.decoder_layers
    for signs, arrays in reruns(network, image, recorded_masks(pair.arrays), section.tolerance):
        heads = np.moveaxis(arrays[f"dec{last}_pred_masks"][0], 0, -1), arrays["class_probs"][0]
        found = Found(arrays, {})
        if wants_outcome(pair, ""):
            (found.outcomes[""],) = network.finish([heads], *sizes, bucket=bucket_of(pair))
        again = Section(pair.name, pair.arrays, network, section.tolerance)
        fill(again, pair, found)
        section.excuse(again, signs)
        if not section.short(depends_on_image):
            return


def text_arrays(network: Network) -> dict[str, np.ndarray]:
    context = network.description.clip.text.context_length
    arrays = {}
    for name, words in (("test", network.test), ("train", network.train)):
        arrays[f"{name}_tokens"] = tokenize(words.prompts(), context)
        arrays[f"{name}_text_features_raw"] = network.encoder.encode(words.prompts())
        arrays[f"text_classifier_{name}"] = network.encoder.embed(words)
    void = np.asarray(network.model.void_embedding[...])[None]
    void = void / np.linalg.norm(void)
    arrays["void_embedding_normalized"] = void
    arrays["text_classifier_with_void"] = np.concatenate([arrays["text_classifier_test"], void])
    arrays["num_templates"] = np.array([len(entry.names) for entry in network.test.classes])
    arrays["category_overlapping_mask"] = network.text.seen[: len(network.test.classes)].astype(np.int64)
    return arrays


def crafted(pair: Pair, network: Network) -> Outcome:
    """Post-processes masks that are given at the output's size, through logits that resize to them."""
    full = np.moveaxis(pair.arrays["crafted_mask_pred"], 0, -1).astype(np.float64)
    shape = full.shape[:2]
    image_hw = (4 * shape[0], 4 * shape[1])
    rows, columns = (
        np.linalg.pinv(resize_matrix(image, output)) for image, output in zip(image_hw, shape, strict=True)
    )
    mask_logits = np.einsum("yi,xj,ijq->yxq", rows, columns, full, optimize=True)
    probs = softmax(pair.arrays["crafted_mask_cls"])
    bucket = larger_bucket([image_hw])
    (outcome,) = network.finish([(mask_logits, probs)], [image_hw], [shape], bucket=bucket, before_resize=False)
    return outcome


def resize_matrix(image: int, output: int) -> np.ndarray:
    """Returns the resize from mask logits to output pixels along one axis: [output, mask logits]."""
    taps = resize_taps(jnp.arange(output, dtype=jnp.int32), jnp.int32(image), jnp.int32(output), jnp.float32)
    start, weights, last = map(np.asarray, taps)
    matrix = np.zeros((output, int(last) + 1))
    for k in range(weights.shape[1]):
        np.add.at(matrix, (np.arange(output), np.minimum(start + k, last)), weights[:, k])
    return matrix


def made_up(pair: Pair, network: Network, valid_masks_only: bool) -> tuple[dict[str, np.ndarray], Outcome]:
    heads = Heads(
        np.moveaxis(pair.arrays["cf_pred_masks"][0], 0, -1),
        pair.arrays["cf_pred_logits"][0],
        np.moveaxis(pair.arrays["cf_clip_vis_dense"][0], 0, -1),
    )
    image_hw, output_hw = (size(pair, pair.require(key)) for key in ("cf_image_hw", "cf_output_hw"))
    bucket = bucket_of(pair)
    (views,) = network.classify([heads], [image_hw], bucket=bucket, valid_masks_only=valid_masks_only)
    probs = views.pop("class_probs")
    (outcome,) = network.finish([(heads.mask_logits, probs)], [image_hw], [output_hw], bucket=bucket)
    return {name: value[None] for name, value in views.items()}, outcome


def fill(section: Section, pair: Pair, found: Found) -> None:
    """Compares the arrays of the pair with this model's."""
    for name, words in (("test", section.network.test), ("train", section.network.train)):
        prompts = pair.facts.get(f"{name}_class_names")
        if prompts is not None and f"{name}_tokens" in found.arrays:
            same = prompts == words.prompts()
            section.add(
                judge.Verdict(f"{name}_class_names", (len(prompts),), same, None, "equal" if same else "differ")
            )
    attention = {name for name in found.arrays if name.endswith("attn_mask_head0")}
    for name, value in found.arrays.items():
        if name in attention:
            attention_line(section, name, found.arrays)
        else:
            section.array(name, value)
    for prefix, outcome in found.outcomes.items():
        section.log_probs(f"{prefix or 'final_'}mask_cls_log_probs", outcome)
        if not prefix:
            section.array("final_mask_pred_logits", np.moveaxis(outcome.full_logits, -1, 0))
        section.semantic("crafted_semantic" if prefix == "crafted_" else f"{prefix}sem_seg", outcome)
        segments_name = f"{prefix}segments_info"
        section.panoptic(f"{prefix}panoptic_seg", outcome, pair.facts.get(segments_name), segments_name)
        section.instances(prefix, outcome)


def attention_line(section: Section, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Returns the cells that queries may not attend to, as a label map. A row that masks all cells masks none."""
    if name not in section.arrays:
        return
    i = int(name.removeprefix("dec").split("_")[0])
    logits = shrunk(arrays[f"dec{i}_pred_masks"], LEVEL_STRIDES[i % len(LEVEL_STRIDES)] // 4)
    logits = logits.reshape(*logits.shape[:2], -1)
    official = section.arrays[name].astype(bool)
    official = official & ~official.all(axis=-1, keepdims=True)
    unsure = np.abs(judge.sigmoid(logits) - 0.5) < judge.UNSURE
    section.add(judge.compare_labels(name, official, arrays[name], unsure))


def depends_on_image(name: str) -> bool:
    return needs(name) == IMAGE


def needs(name: str) -> tuple[str, ...]:
    """Returns the inputs that an array depends on."""
    if name.startswith("crafted_"):
        return CRAFTED
    if name.startswith("cf_"):
        return MADE_UP
    return () if re.match(r"te[sx]t_|train_|void_|num_|category_", name) else IMAGE


def reason(name: str, pair: Pair) -> tuple[str, bool]:
    if not KINDS.fullmatch(name):
        return "no array of this kind is known", False
    missing = [needed for needed in needs(name) if needed not in pair.arrays]
    if missing:
        return f"the file has no {', '.join(missing)}", True
    return "the model as configured has no such stage", True


def held(pair: Pair, names: tuple[str, ...]) -> bool:
    return set(names) <= pair.arrays.keys()


def output_size(pair: Pair, key: str, image: np.ndarray) -> Size:
    return size(pair, pair.facts[key]) if key in pair.facts else image.shape[:2]


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
