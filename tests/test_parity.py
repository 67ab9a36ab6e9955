"""Compares the model with the official code's numbers, and tests the tool on deliberate errors."""

import json
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from convert import fcclip as table
from convert.rules import to_torch
from fcclip_jax.inference.postprocess import Instances, Segments
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import ModelDescription
from fcclip_jax.models.fcclip import FCCLIP
from tests.parity import forcing, judge, training
from tests.parity.__main__ import main
from tests.parity.network import Network, build
from tests.parity.pairs import BadFiles, Pair, describe, find_pairs, read_manifest

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """The tests here run the same programs on several folders."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    compilation_cache.reset_cache()  # its existence is checked only once
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def run(folder: pathlib.Path, *options: str) -> tuple[int, list[str]]:
    lines: list[str] = []
    return main([str(folder), *options], lines.append), lines


def line_of(name: str, lines: list[str]) -> str:
    (line,) = (line for line in lines if line.split()[:1] == [name])
    return line


def test_slice():
    """Compares both families with all official arrays in the repository, within the tool's tolerance of 1e-4."""
    code, lines = run(GOLDEN)
    assert code == 0, "\n".join(line for line in lines if not line.endswith(" ok"))
    files = find_pairs(GOLDEN)
    assert len(files.trainings) == 1
    for pair in files.pairs + files.trainings:
        shown = {line.split()[0] for line in lines}
        outputs = pair.arrays.keys() - {"image_u8", "crafted_mask_cls", "crafted_mask_pred"}
        outputs = {name for name in outputs if not name.startswith(("cf_pred", "cf_clip"))}
        outputs = {name for name in outputs if not training.INPUTS.fullmatch(name)}
        assert {judge_name(name) for name in outputs} <= shown


def test_another_precision_is_compared_with_float32(tmp_path):
    """Every stage is off by some of bfloat16's roundings, of up to 2^-9 of a value each; none is judged."""
    for path in GOLDEN.glob("*small_convnext*"):
        shutil.copy(path, tmp_path)
    code, (title, _, *lines) = run(tmp_path, "--precision", "bfloat16")
    assert code == 0 and title == "small_convnext_eval, bfloat16 compared with float32:"
    rows = [re.fullmatch(r"  (\D[\w ,-]*?) +((?:\d\.\de[-+]\d\d *){4})", line) for line in lines]
    errors = {row[1]: [float(value) for value in row[2].split()] for row in rows if row}
    assert list(errors)[:5] == [f"trunk {stage}" for stage in ("stem", "res2", "res3", "res4", "res5")]
    assert list(errors)[-1] == "class probabilities" and len(errors) == 17
    for rounding, rounding_rms, *_ in errors.values():
        assert 2**-11 < rounding < 0.05 and 2**-12 < rounding_rms < 0.05
    assert len(lines) == 17 + 2 and all(float(re.search(r"([\d.]+)%", line)[1]) > 90 for line in lines[17:])


def test_a_precision_that_the_device_does_not_have(capsys):
    assert run(GOLDEN, "--precision", "tf32") == (2, [])
    message = "parity: precision tf32 needs an NVIDIA GPU of compute capability 8.0 or later, but the device is cpu"
    assert capsys.readouterr().err == f"{message}; choose float32 or bfloat16\n"


def judge_name(name: str) -> str:
    return name[: name.index("instances") + 9] if "instances" in name else name


def test_everything_official(shared):
    """Compares the full arrays, with batches of mixed sizes and semantic-only post-processing."""
    code, lines = run(shared / "golden")
    assert code == 0, "\n".join(line for line in lines if not line.endswith(" ok"))
    for name in ("sem_seg", "case4_sem_seg", "rn_image2_panoptic_seg_overlap0.05", "crafted_image1_sem_seg_argmax"):
        assert any(line.split()[0] == name and line.endswith(" ok") for line in lines)


@pytest.fixture
def small(tmp_path) -> pathlib.Path:
    """Returns a pair whose arrays need few programs: those of the text and of crafted masks."""
    for path in GOLDEN.glob("*small_convnext*"):
        shutil.copy(path, tmp_path)
    keep = ("test_", "train_", "text_", "void_", "num_", "category_", "crafted_")
    rewrite(tmp_path, lambda arrays: {name: x for name, x in arrays.items() if name.startswith(keep)})
    facts = json.loads((tmp_path / "small_convnext_eval.json").read_text())
    kept = {name: value for name, value in facts.items() if name == "crafted_segments_info" or "segments" not in name}
    (tmp_path / "small_convnext_eval.json").write_text(json.dumps(kept))
    return tmp_path


def rewrite(folder: pathlib.Path, change: Callable[[dict], dict]) -> None:
    path = folder / "small_convnext_eval.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **change(arrays))


def test_other_names_and_missing_outputs(small):
    """Compares a pair under another name, which has only some of the arrays."""
    for path in list(small.iterdir()):
        path.rename(path.with_name(path.name.replace("small_convnext", "another-1")))
    path = small / "another-1_eval.npz"
    with np.load(path) as file:
        names = ("text_classifier_test", "crafted_mask_cls", "crafted_mask_pred", "crafted_instances_scores")
        arrays = {name: file[name] for name in names}
    np.savez(path, **arrays)
    code, lines = run(small)
    assert code == 0
    assert line_of("crafted_instances", lines).endswith(" ok")


def altered(name: str, index: tuple[int, ...], value: float) -> Callable[[dict], dict]:
    def change(arrays: dict) -> dict:
        array = arrays[name].copy()
        array[index] = value
        return arrays | {name: array}

    return change


@pytest.mark.parametrize(
    ("name", "shown", "index", "value"),
    [
        ("text_classifier_train", "text_classifier_train", (3, 5), 0.3),
        ("test_tokens", "test_tokens", (7, 2), 1),
        ("category_overlapping_mask", "category_overlapping_mask", (1,), 1),
        ("crafted_panoptic_seg", "crafted_panoptic_seg", (0, 0), 3),
        ("crafted_instances_scores", "crafted_instances", (0,), 0.5),
        ("crafted_instances_classes", "crafted_instances", (4,), 1),
        ("crafted_instances_masks", "crafted_instances", (2, 0, 0), 1),
    ],
)
def test_one_wrong_value_is_named(small, name, shown, index, value):
    rewrite(small, altered(name, index, value))
    code, lines = run(small)
    assert code == 1
    assert [line.split()[0] for line in lines if line.endswith("FALLS SHORT")] == [shown]


def test_tolerance_decides(small):
    """The same error of 1e-3 of the largest value, under two tolerances."""
    with np.load(small / "small_convnext_eval.npz") as file:
        features = file["test_text_features_raw"]
    wrong = features[0, 0] + 1e-3 * np.abs(features).max()
    rewrite(small, altered("test_text_features_raw", (0, 0), wrong))
    assert run(small, "--tolerance", "2e-3")[0] == 0
    assert run(small, "--tolerance", "5e-4")[0] == 1


@pytest.mark.parametrize(
    ("change", "name", "reason", "code"),
    [
        (lambda x: x | {"mystery": np.zeros(3)}, "mystery", "no array of this kind is known", 0),
        (lambda x: x | {"dec9_output": np.zeros(3)}, "dec9_output", "has no image_u8", 1),
        (
            lambda x: {k: v for k, v in x.items() if k != "crafted_mask_pred"},
            "crafted_panoptic_seg",
            "has no crafted",
            1,
        ),
        (lambda x: x | {"cf_valid0_sem_seg": np.zeros(3)}, "cf_valid0_sem_seg", "has no cf_pred_masks", 1),
    ],
)
def test_what_is_not_compared(small, change, name, reason, code):
    """Always printed; a failure only if the official arrays should have it."""
    rewrite(small, change)
    found, lines = run(small)
    assert found == code
    line = line_of(name, lines)
    assert "not compared: " in line and reason in line


@pytest.fixture
def small_training(tmp_path) -> pathlib.Path:
    """Returns a training step without its model's other arrays."""
    for path in GOLDEN.glob("*small_rn*"):
        shutil.copy(path, tmp_path)
    path = tmp_path / "small_rn_eval.npz"
    with np.load(path) as file:
        arrays = {"num_templates": file["num_templates"]}
    np.savez(path, **arrays)
    facts = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in facts.items() if "segments" not in k}))
    return tmp_path


def rewrite_training(folder: pathlib.Path, change: Callable[[dict], dict]) -> None:
    path = folder / "small_rn_train.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **change(arrays))


def test_another_model_is_not_compared(small):
    """The tool reports it and compares the rest; a folder with only this file has nothing to compare."""
    facts = json.loads((small / "small_convnext_eval.json").read_text())
    (small / "other_eval.json").write_text(json.dumps({**facts, "meta_architecture": "OTHER"}))
    np.savez(small / "other_eval.npz", x=np.zeros(1))
    code, lines = run(small)
    assert code == 0 and "other_eval: not compared: its model is OTHER" in lines
    for path in small.glob("small_convnext_eval.*"):
        path.unlink()
    assert run(small)[0] == 2


def test_wrong_values_of_a_training_step_are_named(small_training):
    """Detects a small error of each kind: a matching, a point, a loss, a gradient, a group of the optimiser."""
    bias = "grad_sem_seg_head.pixel_decoder.mask_features.bias"

    def change(arrays: dict) -> dict:
        queries, points = arrays["match2_img1_query"], arrays["loss_points_0"].copy()
        points[3, 7] += 1e-6
        largest = np.abs(arrays[bias]).max()
        arrays |= {"match2_img1_query": queries[::-1], "loss_points_0": points}
        arrays |= {"weighted_loss_dice_1": arrays["weighted_loss_dice_1"] * np.float32(1 + 2e-4)}
        return arrays | {bias: arrays[bias] + 2e-3 * largest, "after_x.bias": np.zeros(3), "mystery": np.zeros(3)}

    rewrite_training(small_training, change)
    path = small_training / "small_rn_train.json"
    facts = json.loads(path.read_text())
    facts["param_groups"][5]["weight_decay"] = 0.01
    path.write_text(json.dumps(facts))
    code, lines = run(small_training)
    assert code == 1
    short = {line.split()[0] for line in lines if line.endswith("FALLS SHORT")}
    assert short == {"param_groups", "match2_img1_query", "loss_points_0", "weighted_loss_dice_1", bias}
    assert "1 differ, " + facts["param_groups"][5]["key"] in line_of("param_groups", lines)
    assert "not compared: the file has no other weights" in line_of("after_x.bias", lines)
    assert "not compared: no array of this kind" in line_of("mystery", lines)


def test_a_training_step_without_its_inputs(small_training):
    rewrite_training(small_training, lambda arrays: {"total_loss": arrays["total_loss"]})
    code, lines = run(small_training)
    assert code == 1
    assert "not compared: the file has no images, targets or draws" in line_of("total_loss", lines)


def break_json(folder):
    (folder / "small_convnext_eval.json").write_text('{"model_cfg": ')


def break_npz(folder):
    (folder / "small_convnext_eval.npz").write_bytes(b"PK\x03\x04 and no more")


def put_a_pickle(folder):
    np.savez(folder / "small_convnext_eval.npz", image_u8=np.array([{}], dtype=object))


def lose(name):
    return lambda folder: (folder / name).unlink()


def configure(*keys, value):
    def change(folder):
        path = folder / "small_convnext_eval.json"
        facts = place = json.loads(path.read_text())
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        path.write_text(json.dumps(facts))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "does not exist; give one"),
        (lose("small_convnext_eval.npz"), "small_convnext_eval.npz is missing"),
        (lose("small_convnext_eval.json"), "small_convnext_eval.json is missing"),
        (lose("manifest_small_convnext.json"), "manifest_small_convnext.json is missing"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "nothing to compare with"),
        (break_json, "is not JSON"),
        (break_npz, "is not an npz file"),
        (put_a_pickle, "is not an npz file of plain arrays"),
        (configure("model_cfg", "FC_CLIP", value={}), "has no 'GEOMETRIC_ENSEMBLE_ALPHA'"),
        (configure("model_cfg", "PIXEL_MEAN", value=[0, 0, 0]), "model_cfg.PIXEL_MEAN = [0, 0, 0]"),
        (configure("trunk", "depths", value=[1, 1, 3, 1]), "is not that of its model"),
    ],
)
def test_mistakes_are_told_in_a_sentence(small, capsys, change, message):
    change(small)
    code, lines = run(small)
    assert (code, lines) == (2, [])
    error = capsys.readouterr().err
    assert error.startswith("parity: ") and message in error and "Traceback" not in error


CONFIGURATIONS = {
    "small_convnext": {
        ("trunk", "depths"): [2, 1, 3, 1],
        ("trunk", "dims"): [16, 24, 40, 56],
        ("open_clip_cfg", "vision_cfg", "timm_proj"): "linear",
        ("model_cfg", "MASK_FORMER", "NHEADS"): 4,
        ("model_cfg", "MASK_FORMER", "DEC_LAYERS"): 8,
    },
    "small_rn": {
        ("open_clip_cfg", "vision_cfg", "layers"): [1, 3, 1, 2],
        ("open_clip_cfg", "vision_cfg", "width"): 16,
        ("open_clip_cfg", "vision_cfg", "image_size"): 96,
        ("open_clip_cfg", "text_cfg", "layers"): 5,
        ("model_cfg", "SEM_SEG_HEAD", "TRANSFORMER_ENC_LAYERS"): 3,
        ("model_cfg", "MASK_FORMER", "NUM_OBJECT_QUERIES"): 33,
        ("model_cfg", "MASK_FORMER", "DIM_FEEDFORWARD"): 72,
    },
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_model_follows_the_configuration(tmp_path, name):
    """Each changed number shows in the checkpoint's keys and shapes, which the conversion tables check."""
    for path in GOLDEN.glob(f"*{name}*"):
        shutil.copy(path, tmp_path)
    pair = find_pairs(tmp_path).pairs[0]
    original = read_manifest(pair)
    for keys, value in CONFIGURATIONS[name].items():
        place = pair.facts
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
    description = describe(pair)
    with pytest.raises(BadFiles, match="is not that of its model"):
        build(description, original, pair)
    assert description.head.decoder_layers == pair.require("model_cfg", "MASK_FORMER", "DEC_LAYERS") - 1
    manifest = manifest_of(description)
    assert manifest.keys() != original.keys()
    build(description, manifest, pair)


def manifest_of(description: ModelDescription) -> dict[str, tuple[int, ...]]:
    model = nnx.eval_shape(lambda: FCCLIP(description, rngs=nnx.Rngs(0)))
    empty = {name: np.zeros(variable.shape, np.float32) for name, variable in named_variables(model).items()}
    return {key: x.shape for key, x in to_torch(empty, table.rules(description.clip.image.family), {}).items()}


class Turned(NamedTuple):
    """Returns a model's numbers with the sign of one mask logit near zero changed."""

    pair: Pair
    sign: forcing.Sign
    arrays: dict[str, np.ndarray]

    def write(self, folder: pathlib.Path, **more: np.ndarray) -> None:
        """Writes the layers' class embeddings and logits, and the given arrays, as official ones."""
        names = [name for name in self.arrays if name.endswith(("class_embed", "pred_logits"))]
        for path in GOLDEN.glob("*small_rn*.json"):
            shutil.copy(path, folder)
        facts = {name: value for name, value in self.pair.facts.items() if "segments" not in name}
        (folder / "small_rn_eval.json").write_text(json.dumps(facts))
        arrays = {name: self.arrays[name] for name in names} | {"image_u8": self.pair.arrays["image_u8"]} | more
        np.savez(folder / "small_rn_eval.npz", **arrays)


@pytest.fixture(scope="module")
def turned() -> Turned:
    (pair,) = (pair for pair in find_pairs(GOLDEN).pairs if pair.name == "small_rn_eval")
    with jax.default_matmul_precision("highest"):  # as in the tool, whose programs are compiled already
        network = Network(pair)
        image = pair.arrays["image_u8"]
        own = network.stages(image, {})
        last = f"dec{network.description.head.decoder_layers}_pred_logits"
        for signs, arrays in forcing.reruns(network, image, {}, 1e-4):
            if not judge.compare_array(last, arrays[last], own[last], 1e-4).ok:
                return Turned(pair, signs[0], arrays)
    pytest.fail("no logit near zero matters in this image")


def test_a_sign_near_zero_is_excused_and_named(turned, tmp_path):
    """Without recorded masks the sign is found by trial."""
    turned.write(tmp_path)
    code, lines = run(tmp_path)
    assert code == 0
    excused = [line for line in lines if "teacher-forced" in line]
    assert excused and all(f"dec{turned.sign.prediction} query {turned.sign.place[0]} at" in line for line in excused)


def recorded_masks(turned: Turned) -> dict[str, np.ndarray]:
    masks = {name: x.copy() for name, x in turned.arrays.items() if name.endswith("pred_masks")}
    query, row, column = turned.sign.place
    factor = turned.sign.stride // 4
    near = [factor // 2 - 1, factor // 2] if factor > 1 else [0]
    cells = np.ix_(np.array(near) + row * factor, np.array(near) + column * factor)
    masks[f"dec{turned.sign.prediction}_pred_masks"][0, query][cells] += turned.sign.forced - turned.sign.logit
    return masks


def test_recorded_masks_rule_the_second_try(turned, tmp_path):
    turned.write(tmp_path, **recorded_masks(turned))
    code, lines = run(tmp_path)
    assert code == 0
    assert any("teacher-forced" in line for line in lines)


def test_an_excuse_hides_no_other_error(turned, tmp_path):
    name = "dec4_class_embed"
    wrong = turned.arrays[name].copy()
    wrong[0, 3, 3] += 1e-3 * np.abs(wrong).max()
    turned.write(tmp_path, **recorded_masks(turned), **{name: wrong})
    code, lines = run(tmp_path)
    assert code == 1
    assert [line.split()[0] for line in lines if line.endswith("FALLS SHORT")] == [name]


# The rules of judging, by hand.


def test_arrays_are_judged_by_their_largest_value():
    official = np.array([100.0, 1.0, -50.0], np.float32)
    assert judge.compare_array("x", official, official + np.float32(0.009), 1e-4).ok
    verdict = judge.compare_array("x", official, official + np.float32(0.011), 1e-4)
    assert not verdict.ok
    assert verdict.error == pytest.approx(1.1e-4, rel=1e-3)
    assert not judge.compare_array("x", official, official[None], 1e-4).ok
    assert not judge.compare_array("x", official, official * np.nan, 1e-4).ok
    assert not judge.compare_array("x", np.array([2]), np.array([3]), 1.0).ok  # whole numbers must be equal


def test_only_pixels_too_near_to_call_may_differ():
    official = np.array([[1, 2], [3, 0]])
    ours = np.array([[1, 2], [3, 1]])
    unsure = np.array([[False, False], [False, True]])
    assert judge.compare_labels("x", official, ours, unsure).ok
    assert not judge.compare_labels("x", official, ours, ~unsure).ok


def test_a_segment_of_unsure_pixels_shifts_the_ids_after_it():
    official = np.array([1, 2, 3, 3, 0])
    ours = np.array([1, 1, 2, 2, 0])
    unsure = np.array([False, True, False, False, False])
    assert judge.compare_panoptic("x", official, ours, unsure).ok
    assert not judge.compare_panoptic("x", official, ours, np.zeros(5, bool)).ok
    assert not judge.compare_panoptic("x", official, np.array([1, 1, 3, 3, 0]) - 1, unsure).ok


def test_segments_are_listed_in_order():
    official = [{"id": 1, "category_id": 4, "isthing": True}, {"id": 2, "category_id": 6, "isthing": False}]
    ids, sure = np.array([1, 2]), np.zeros(2, bool)

    def verdict(classes, things, official_ids=None, our_ids=ids, unsure=sure) -> bool:
        count, blank = np.int32(len(classes)), np.zeros(len(classes))
        ours = Segments(count, np.array(classes, np.int32), np.array(things), blank, blank)
        return judge.compare_segments("x", official, ours, official_ids, our_ids, unsure).ok

    assert verdict([4, 6], [True, False])
    assert not verdict([6, 4], [False, True])
    assert not verdict([4, 6], [True, True])
    assert not verdict([4], [True])
    # The second segment has only an unsure pixel, in the official map alone.
    assert verdict([4], [True], ids, np.array([1, 1]), np.array([False, True]))
    assert not verdict([4], [True], ids, np.array([1, 1]))


def test_margins_by_hand():
    """Two queries and void: probabilities 0.5 and 0.9 at scores 0.8 and 0.4."""
    logits = np.array([[[0.0, np.log(9.0)]]])
    class_probs = np.array([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3]])
    margin, winner = judge.panoptic_margin(logits, class_probs, 0.0)
    np.testing.assert_allclose(margin, [[0.5 * 0.8 - 0.9 * 0.4]])
    np.testing.assert_allclose(winner, [[0.5]])
    assert judge.panoptic_unsure(logits, class_probs, 0.0).all()  # the winner's 0.5 is at the threshold
    margin, winner = judge.panoptic_margin(logits, class_probs, 0.5)  # the second takes no part
    np.testing.assert_allclose(margin, [[0.4]])


def instances(labels, scores, queries) -> Instances:
    count = len(labels)
    blank = np.zeros(count, np.int32), np.zeros((count, 4), np.int32)
    parts = np.array(labels, np.int32), np.array(scores, np.float32), np.array(queries, np.int32)
    return Instances(np.int32(count), *parts, *blank, np.arange(count, dtype=np.int32))


def test_instances_are_multisets_within_equal_scores():
    """Three queries with masks of one pixel each; the last two tie, so their order is free but not their masks."""
    full = np.full((8, 8, 3), -5.0, np.float32)
    full[[0, 1, 2], [0, 1, 2], [0, 1, 2]] = 5.0
    probs = np.array([[0.9, 0.1], [0.5, 0.5], [0.5, 0.5]], np.float32)
    masks = np.moveaxis(full > 0, -1, 0).astype(np.uint8)
    ours = instances([0, 0, 0], [0.9, 0.5, 0.5], [0, 2, 1])
    bits = np.packbits(masks[ours.queries].swapaxes(1, 2), axis=2, bitorder="little")

    def verdict(**official) -> bool:
        parts = {"scores": np.array([0.9, 0.5, 0.5]), "classes": np.zeros(3, int), "masks": masks} | official
        everything = judge.InstanceSet(**parts), ours, bits, full, probs, np.array([True]), 1e-4
        return judge.compare_instances("x", *everything).ok

    assert verdict()
    assert verdict(scores=None) and verdict(masks=None)
    assert not verdict(scores=np.array([0.9, 0.5, 0.499]))
    assert not verdict(classes=np.array([0, 0, 1]))
    assert not verdict(masks=masks[[1, 0, 2]])  # 0.9 belongs to query 0
    assert not verdict(masks=masks[[0, 1, 1]])
    assert not verdict(scores=np.array([0.9, 0.5]), classes=np.zeros(2, int), masks=masks[:2])


def test_log_probabilities_where_void_is_all_but_sure():
    """1 - void keeps no digits in float32 there: its spacing of 1.2e-7 is a third of the value."""
    exact = np.array([[3.0e-7, 1 - 3.0e-7], [0.4, 0.6]])
    rounded = np.array([[4.0e-7, 1 - 4.0e-7], [0.4, 0.6]])
    assert judge.compare_log_probs("x", np.log(exact), rounded, 1e-4).ok
    assert not judge.compare_log_probs("x", np.log(exact), np.array([[9e-7, 1 - 9e-7], [0.4, 0.6]]), 1e-4).ok
    assert not judge.compare_log_probs("x", np.log(exact), np.array([[3e-7, 1 - 3e-7], [0.41, 0.59]]), 1e-4).ok
