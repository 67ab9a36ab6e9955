"""`python -m convert`, run in this process on tiny models of both families."""

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from convert import commands, fcclip
from convert.__main__ import main
from convert.weight_files import read
from fcclip_jax import checkpoint
from fcclip_jax.checkpoint import directory
from fcclip_jax.models import description_json, descriptions
from fcclip_jax.text.vocabulary import Vocabulary
from tests.convert.tiny import CLIPS, HEAD, model_description, official_tensors

WRITE_CHECKPOINT = commands.write_checkpoint


def need_torch():
    return pytest.importorskip("torch", reason="PyTorch writes .pth files (extra: convert)")


def write_weights(path, tensors, *, wrap=lambda tensors: tensors):
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(wrap(tensors), path)
    else:
        torch = need_torch()
        torch.save(wrap({key: torch.from_numpy(np.array(array)) for key, array in tensors.items()}), path)
    return path


def read_weights(path):
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    loaded = need_torch().load(path, weights_only=True)
    assert loaded.keys() == {"model"}
    return {key: tensor.numpy() for key, tensor in loaded["model"].items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape), key
        np.testing.assert_array_equal(found[key], array, err_msg=key)


def clip_part(tensors):
    prefix = fcclip.CLIP_PREFIX
    return {key.removeprefix(prefix): array for key, array in tensors.items() if key.startswith(prefix)}


def head_part(tensors):
    return {key: array for key, array in tensors.items() if not key.startswith(fcclip.CLIP_PREFIX)}


@pytest.fixture(params=["convnext", "resnet"])
def family(request):
    return request.param


@pytest.fixture
def tensors(family):
    return official_tensors(model_description(family))


@pytest.fixture
def model(family, tmp_path):
    """A file that describes CLIP only: the head is derived from the shapes."""
    path = tmp_path / "clip.json"
    path.write_text(json.dumps(description_json.to_json(CLIPS[family])))
    return path


@pytest.fixture
def files(tmp_path):
    """A function, convert(command, output, option=value, ...), that runs a command and returns its output's path."""

    def convert(command, output, *flags, **options):
        pairs = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        assert main([command, *pairs, "--output", str(tmp_path / output), *flags]) == 0
        return tmp_path / output

    return convert


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_there_and_back(tmp_path, files, tensors, family, model, suffix, capsys):
    weights = write_weights(tmp_path / f"weights{suffix}", tensors)
    folder = files("fcclip", "made", checkpoint=weights, model=model)
    printed = capsys.readouterr().out
    loaded = checkpoint.load(folder)
    assert loaded.description == model_description(family)
    assert loaded.training_vocabulary == Vocabulary.load("coco_panoptic")
    assert checkpoint.read(folder).source == checkpoint.Origin(
        weights.name, hashlib.sha256(weights.read_bytes()).hexdigest()
    )
    # One of each kind of transform by hand: converting in both directions would not reveal a wrong one.
    pixel = "sem_seg_head.pixel_decoder"
    fpn = loaded.model.pixel_decoder.fpn.conv.weight.get_value()
    np.testing.assert_array_equal(fpn, tensors[f"{pixel}.layer_1.weight"].transpose(2, 3, 1, 0))
    second = loaded.model.pixel_decoder.layers.stacked.linear1.weight.get_value()[1]
    np.testing.assert_array_equal(second, tensors[f"{pixel}.transformer.encoder.layers.1.linear1.weight"].T)
    np.testing.assert_array_equal(loaded.model.void_embedding.get_value(), tensors["void_embedding.weight"][0])
    assert "ignored criterion.empty_weight: the training loss's class weights" in printed
    assert ("num_batches_tracked: a counter" in printed) == (family == "resnet")

    back = files("torch", f"back{suffix}", checkpoint=folder)
    assert_same(read_weights(back), tensors)
    assert back.stat().st_mode == (folder / "fcclip.json").stat().st_mode


@pytest.mark.parametrize("family", ["convnext"])
def test_each_step_is_said_and_the_end_says_where(tmp_path, files, tensors, model, capsys, monkeypatch):
    """On stderr, before the step: a gigabyte takes a minute."""
    weights = write_weights(tmp_path / "weights.safetensors", tensors)
    monkeypatch.chdir(tmp_path)
    made = files("fcclip", "made", checkpoint=weights, model=model)
    out, error = capsys.readouterr()
    # The progress of renaming, which slow machines report.
    steps = [line.split()[0] for line in error.splitlines() if not line.startswith("renaming: ")]
    assert steps == ["reading", "renaming", "checking:", "writing"], error
    assert error.startswith(f"reading {weights}, ")
    assert out.splitlines()[-1] == f"the checkpoint is in {made}"
    half = files("half", "half", checkpoint="made")
    out, error = capsys.readouterr()
    first, second = error.splitlines()
    assert first == f"reading and checking {made}" and second.startswith("rounding, checking and writing")
    assert out == f"the checkpoint is in {half}\n"
    back = files("torch", "back.safetensors", checkpoint="made")
    out, error = capsys.readouterr()
    assert [line.split()[0] for line in error.splitlines()] == ["reading", "renaming", "writing"]
    assert out == f"wrote {back}\n"


@pytest.mark.parametrize("family", ["convnext"])
def test_ovrcoat(tmp_path, files, tensors, model, capsys):
    """Its own CLIP counts and the untouched one is dropped, unread; each preset is in the description."""
    twin = {
        f"frozen_{key}": np.asarray(array + 1) for key, array in tensors.items() if key.startswith(fcclip.CLIP_PREFIX)
    }
    weights = write_weights(tmp_path / "ovrcoat.safetensors", tensors | twin)
    made = checkpoint.read(files("fcclip", "made", checkpoint=weights, model=model))
    dropped = [line for line in capsys.readouterr().out.splitlines() if "OVRCOAT's untouched CLIP" in line]
    assert [line.split()[:3] for line in dropped] == [["ignored", str(len(twin)), "tensors"]]
    plain = checkpoint.read(
        files("fcclip", "plain", checkpoint=write_weights(tmp_path / "plain.safetensors", tensors), model=model)
    )
    assert_same(made.parameters, plain.parameters)
    assert made.ignored.keys() == plain.ignored.keys()
    assert plain.description.defaults == descriptions.OFFICIAL_DEFAULTS
    assert made.description.defaults == descriptions.DefaultsDescription(overlap_threshold=0.7, panoptic_void_trust=0.5)
    official = checkpoint.read(files("fcclip", "official", "--as-official", checkpoint=weights, model=model))
    assert official.description.defaults == descriptions.DefaultsDescription(
        overlap_threshold=0.7,
        panoptic_void_trust=0.5,
        semantic_void_trust=0.5,
        instance_void_trust=0.5,
        instance_scores="mask_logit",
    )


@pytest.mark.parametrize("family", ["convnext"])
@pytest.mark.parametrize(
    ("extra", "left_out", "flags", "complaint"),
    [
        (
            ["frozen_backbone.clip_model.logit_scale"],
            "backbone.clip_model.visual.",
            [],
            "without its image trunk, which was",
        ),
        (["cdt.cross_atten.weight"], "none", [], "contains MAFT+, which computes more than FC-CLIP"),
        (["mask_adapter.fuse.weight"], "none", [], "contains Mask-Adapter, which computes more"),
        ([], "none", ["--as-official"], "contains no OVRCOAT, for which --as-official is"),
    ],
)
def test_relatives_that_are_refused(tmp_path, tensors, model, capsys, extra, left_out, flags, complaint):
    tensors = {key: array for key, array in tensors.items() if not key.startswith(left_out)}
    weights = write_weights(tmp_path / "w.safetensors", tensors | dict.fromkeys(extra, np.ones(1, np.float32)))
    arguments = [
        "fcclip",
        "--checkpoint",
        str(weights),
        "--model",
        str(model),
        "--output",
        str(tmp_path / "out"),
        *flags,
    ]
    assert main(arguments) == 2
    assert complaint in capsys.readouterr().err and not (tmp_path / "out").exists()


WRAPPINGS = {
    "bare.safetensors": lambda tensors: tensors,
    "module.safetensors": lambda tensors: {f"module.{key}": tensor for key, tensor in tensors.items()},
    "bare.pth": lambda tensors: tensors,
    "model.pth": lambda tensors: {"model": tensors, "iteration": 5, "optimizer": {"lr": 0.1}},
    "state_dict.pth": lambda tensors: {"state_dict": {f"module.{key}": tensor for key, tensor in tensors.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_are_taken_off(tmp_path, wrapping):
    tensors = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.asarray(2**40, np.int64)}
    opened = read(write_weights(tmp_path / wrapping, tensors, wrap=WRAPPINGS[wrapping]))
    assert {key: tensor.shape for key, tensor in opened.tensors.items()} == {"a.weight": (2, 3), "steps": ()}
    assert_same({key: tensor.load() for key, tensor in opened.tensors.items()}, tensors)


@pytest.mark.parametrize("family", ["resnet"])
def test_clip_apart(tmp_path, files, tensors, model):
    whole = files("fcclip", "whole", checkpoint=write_weights(tmp_path / "all.safetensors", tensors), model=model)
    head = write_weights(tmp_path / "head.safetensors", head_part(tensors))
    clip = write_weights(tmp_path / "clip.safetensors", clip_part(tensors))
    folder = files("openclip", "clip", pretrained=clip, model=model)
    assert_same(read_weights(files("torch", "clip_back.safetensors", checkpoint=folder)), clip_part(tensors))
    for number, where in enumerate((clip, folder)):
        made = files("fcclip", f"apart{number}", checkpoint=head, clip=where, model=model)
        contents, expected = checkpoint.read(made), checkpoint.read(whole)
        assert_same(contents.parameters, expected.parameters)
        assert_same(contents.ignored, expected.ignored)
        assert contents.text_sha256 == expected.text_sha256
        assert (contents.source.name, contents.clip_source.name) == ("head.safetensors", "clip.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_single(tmp_path, suffix, dtype):
    torch = need_torch()
    save = pytest.importorskip("safetensors.torch", reason="safetensors.torch writes bfloat16").save_file
    halves = {"a": torch.randn(3, 5).to(getattr(torch, dtype)), "steps": torch.tensor(7)}
    path = tmp_path / f"half{suffix}"
    save(halves, path) if suffix == ".safetensors" else torch.save(halves, path)
    loaded = {key: tensor.load() for key, tensor in read(path).tensors.items()}
    assert_same(loaded, {"a": halves["a"].float().numpy(), "steps": np.asarray(7, np.int64)})


def test_a_description_file_may_hold_any_head(tmp_path, files):
    model = dataclasses.replace(model_description("convnext"), head=dataclasses.replace(HEAD, heads=2))
    # The same shapes fit other numbers of heads and points: only the description has them.
    model = dataclasses.replace(model, head=dataclasses.replace(model.head, sampling_points=12))
    (tmp_path / "model.json").write_text(json.dumps(description_json.to_json(model)))
    weights = write_weights(tmp_path / "w.safetensors", official_tensors(model))
    vocabulary = Vocabulary.from_words(["cat", "sky"], stuff=["sky"])
    (tmp_path / "words.json").write_text(vocabulary.to_json())
    made = files("fcclip", "m", checkpoint=weights, model=tmp_path / "model.json", vocabulary=tmp_path / "words.json")
    loaded = checkpoint.load(made)
    assert (loaded.description, loaded.training_vocabulary) == (model, vocabulary)


@pytest.fixture
def described(monkeypatch):
    """A function, described(arguments...), that returns a conversion's description without converting.

    Two of OpenCLIP's names stand for tiny models.
    """
    monkeypatch.setitem(descriptions.CLIP_MODELS, "RN50", CLIPS["resnet"])
    monkeypatch.setitem(descriptions.CLIP_MODELS, "convnext_large_d_320", CLIPS["convnext"])
    seen = []
    monkeypatch.setattr(commands, "write_checkpoint", lambda arguments, description, *rest: seen.append(description))

    def run(*arguments):
        assert main([str(argument) for argument in (*arguments, "--output", "nowhere")]) == 0
        return seen.pop()

    return run


@pytest.mark.parametrize(
    ("model", "flags", "alone", "whole"),
    [
        ("RN50", [], False, True),
        ("RN50-quickgelu", [], True, True),
        ("RN50", ["--quick-gelu"], True, True),
        ("RN50-quickgelu", ["--no-quick-gelu"], False, False),
        ("convnext_large_d_320", [], False, False),
    ],
)
def test_quick_gelu(tmp_path, described, model, flags, alone, whole):
    tensors = official_tensors(model_description("resnet" if "RN" in model else "convnext"))
    clip = write_weights(tmp_path / "clip.safetensors", clip_part(tensors))
    assert described("openclip", "--pretrained", clip, "--model", model, *flags).text.quick_gelu == alone
    weights = write_weights(tmp_path / "all.safetensors", tensors)
    assert described("fcclip", "--checkpoint", weights, "--model", model, *flags).clip.text.quick_gelu == whole


def test_quick_gelu_of_a_description_file(tmp_path, described, resnet):
    tensors, options = resnet
    clip = write_weights(tmp_path / "clip.safetensors", clip_part(tensors))
    whole = write_weights(tmp_path / "whole.safetensors", tensors)
    model = tmp_path / "model.json"
    model.write_text(json.dumps(description_json.to_json(model_description("resnet"))))
    for flags, expected in (([], False), (["--quick-gelu"], True)):
        assert described("fcclip", "--checkpoint", whole, *options[:2], *flags).clip.text.quick_gelu == expected
        assert described("fcclip", "--checkpoint", whole, "--model", model, *flags).clip.text.quick_gelu == expected
        assert described("openclip", "--pretrained", clip, "--model", model, *flags).text.quick_gelu == expected


def test_tags_come_from_open_clip(tmp_path, files, described, monkeypatch):
    package = pytest.importorskip("open_clip", reason="OpenCLIP resolves its tags (extra: convert)")
    tensors = official_tensors(model_description("resnet"))
    downloaded = write_weights(tmp_path / "open_clip_model.safetensors", clip_part(tensors))
    head = write_weights(tmp_path / "head.safetensors", head_part(tensors))
    asked = []
    monkeypatch.setattr(package, "download_pretrained", lambda config: asked.append(config) or str(downloaded))
    assert described("openclip", "--pretrained", "openai", "--model", "RN50").text.quick_gelu
    assert described("fcclip", "--checkpoint", head, "--clip", "openai", "--model", "RN50").clip.text.quick_gelu
    assert asked == [package.get_pretrained_cfg("RN50", "openai")] * 2
    # The default of the ResNets yields to the checkpoint of CLIP.
    monkeypatch.setattr(commands, "write_checkpoint", WRITE_CHECKPOINT)
    exact = files("openclip", "exact", "--no-quick-gelu", pretrained="openai", model="RN50")
    assert checkpoint.read(exact).source.name == "openai"
    made = files("fcclip", "made", checkpoint=head, clip=exact, model="RN50")
    assert not checkpoint.load(made).description.clip.text.quick_gelu


@pytest.mark.parametrize("family", ["convnext"])
def test_the_words_of_a_clip_are_kept(tmp_path, files, tensors, model, capsys):
    """A CLIP that was trained on few words makes an FC-CLIP that knows no others."""
    clip = files(
        "openclip", "clip", pretrained=write_weights(tmp_path / "clip.safetensors", clip_part(tensors)), model=model
    )
    words = ("cat", "night sky")
    checkpoint.save(tmp_path / "few", checkpoint.read(clip)._replace(known_words=words))
    capsys.readouterr()
    head = write_weights(tmp_path / "head.safetensors", head_part(tensors))
    made = files("fcclip", "made", checkpoint=head, clip=tmp_path / "few", model=model)
    assert checkpoint.read(made).known_words == checkpoint.load(made).known_words == words
    assert "knows only the 2 words that CLIP was trained with" in capsys.readouterr().out
    again = files("openclip", "again", pretrained=tmp_path / "few", model=model)
    half = files("half", "half", checkpoint=made)
    assert checkpoint.read(again).known_words == checkpoint.read(half).known_words == words
    # A file records no words, and another CLIP than this takes any.
    assert checkpoint.read(files("fcclip", "any", checkpoint=head, clip=clip, model=model)).known_words is None


def test_a_vocabulary_is_utf8_whatever_the_locale(tmp_path):
    made = Vocabulary.from_words(["caf\xe9", "\u732b"])
    path = tmp_path / "classes.json"
    path.write_text(made.to_json().replace("caf\\u00e9", "caf\xe9").replace("\\u732b", "\u732b"), "utf-8-sig")
    assert "caf\xe9" in path.read_text("utf-8-sig")
    program = "import sys; from convert.inputs import read_vocabulary; print(ascii(read_vocabulary(sys.argv[1]).names))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "('caf\\xe9', '\\u732b')\n"


class Harm:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.fixture
def refused(tmp_path, capfd):
    """A function, refused(sentence, arguments...), that expects exit code 2, one sentence and no new files."""

    def run(sentence, *arguments):
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        *steps, error = capfd.readouterr().err.splitlines()
        assert error.startswith("error: ") and sentence in error
        known = {"reading", "renaming", "renaming:", "checking:", "writing", "rounding,"}
        assert {line.split()[0] for line in steps} <= known
        assert sorted(tmp_path.rglob("*")) == before

    return run


@pytest.fixture
def resnet(tmp_path):
    """A valid checkpoint's tensors, and the options of its conversions."""
    (tmp_path / "clip.json").write_text(json.dumps(description_json.to_json(CLIPS["resnet"])))
    options = ["--model", tmp_path / "clip.json", "--output", tmp_path / "made"]
    return official_tensors(model_description("resnet")), options


def test_a_pickle_bomb_is_not_run(tmp_path, refused, resnet):
    need_torch()
    marker = tmp_path / "marker"
    bombs = {"plain.pth": {"model": {"weight": Harm(marker)}}, "bare.pth": Harm(marker)}
    for name, bomb in bombs.items():
        need_torch().save(bomb, tmp_path / name)
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Harm(marker)))
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Harm(marker)))
        archive.writestr("archive/version", "3")
    for name in (*bombs, "zip.pth", "old.pth"):
        refused(
            "or contains more than plain tensors, which can run code",
            "fcclip",
            "--checkpoint",
            tmp_path / name,
            *resnet[1],
        )
        refused("is refused", "openclip", "--pretrained", tmp_path / name, *resnet[1])
        assert not marker.exists()
    # Without the check, unpickling them creates the file.
    pickle.loads((tmp_path / "old.pth").read_bytes()).close()
    assert marker.exists()


def test_files_that_are_no_weights(tmp_path, refused, resnet):
    torch = need_torch()
    _, options = resnet

    def expect(sentence, name):
        refused(sentence, "fcclip", "--checkpoint", tmp_path / name, *options)

    (tmp_path / "text.pth").write_text("these are no weights\n")
    expect("is not a PyTorch file, or is truncated", "text.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    expect("is not a PyTorch file, or is truncated", "empty.pth")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "short.pth")
    (tmp_path / "short.pth").write_bytes((tmp_path / "short.pth").read_bytes()[:2000])
    expect("is not a PyTorch file, or is truncated", "short.pth")
    (tmp_path / "old.pth").write_bytes(b"\x80\x02 these are no weights")
    expect("is refused: it is damaged", "old.pth")
    (tmp_path / "text.safetensors").write_text("these are no weights\n")
    expect("is not a safetensors file, or is damaged", "text.safetensors")
    safetensors.numpy.save_file({"a": np.zeros(1000)}, tmp_path / "short.safetensors")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "short.safetensors").read_bytes()[:2000])
    expect("is not a safetensors file, or is damaged", "short.safetensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    expect("contains a list, not a dictionary of tensors", "list.pth")
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    expect("'epoch' is a int, not a plain tensor", "number.pth")
    torch.save({"model": {}}, tmp_path / "nothing.pth")
    expect("contains no tensors", "nothing.pth")
    # The format of torch.jit.save, which fails on recent Python versions.
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
        archive.writestr("script/code/model.py", "")
    expect("is a TorchScript archive, which is a program", "script.pt")
    expect("absent.pth does not exist; check the path", "absent.pth")
    refused(
        "absent.safetensors does not exist; check the path",
        "openclip",
        "--pretrained",
        tmp_path / "absent.safetensors",
        *options,
    )


def test_an_older_pytorchs_file(tmp_path, files, resnet):
    torch = need_torch()
    tensors, _ = resnet
    as_torch = {key: torch.from_numpy(np.array(array)) for key, array in tensors.items()}
    torch.save({"model": as_torch}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    made = files("fcclip", "made", checkpoint=tmp_path / "old.pth", model=tmp_path / "clip.json")
    assert_same(read_weights(files("torch", "back.safetensors", checkpoint=made)), tensors)


def test_every_misfit_is_listed(tmp_path, resnet, capsys):
    tensors, options = resnet
    del tensors["sem_seg_head.predictor.query_feat.weight"]
    del tensors["sem_seg_head.pixel_decoder.transformer.encoder.layers.1.norm2.bias"]
    tensors["void_embedding.weight"] = np.zeros((1, 5), np.float32)
    tensors["surprise"] = np.zeros(1, np.float32)
    weights = write_weights(tmp_path / "w.safetensors", tensors)
    assert main(["fcclip", "--checkpoint", str(weights), *map(str, options)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert sorted(said[said.index("error: the weights do not fit the model (4 problems):") :]) == [
        "  mask_decoder.query_feat: no key in the checkpoint fills it",
        "  pixel_decoder.layers.stacked.norm2.bias (layers 1): no key in the checkpoint fills it",
        "  surprise: matches no rule",
        "  void_embedding.weight: shape [1, 5] does not fit void_embedding of shape [12]",
        "error: the weights do not fit the model (4 problems):",
    ]
    assert not (tmp_path / "made").exists()


def test_clip_weights_missing_or_given_twice(tmp_path, refused, resnet):
    tensors, options = resnet
    whole = write_weights(tmp_path / "whole.safetensors", tensors)
    head = write_weights(tmp_path / "head.safetensors", head_part(tensors))
    clip = write_weights(tmp_path / "clip.safetensors", clip_part(tensors))
    refused("contains no CLIP weights; add --clip", "fcclip", "--checkpoint", head, *options)
    refused("already; remove --clip", "fcclip", "--checkpoint", whole, "--clip", clip, *options)
    refused("contains no FC-CLIP; convert a CLIP alone with", "fcclip", "--checkpoint", clip, *options)
    refused("contains a whole FC-CLIP; convert it with", "openclip", "--pretrained", whole, *options)


def test_names_that_are_unknown(tmp_path, refused, resnet, monkeypatch):
    package = pytest.importorskip("open_clip", reason="OpenCLIP lists its tags (extra: convert)")
    tensors, options = resnet
    whole = write_weights(tmp_path / "whole.safetensors", tensors)
    clip = write_weights(tmp_path / "c.safetensors", clip_part(tensors))
    output = ["--output", tmp_path / "made"]
    refused("did you mean 'RN50'?", "openclip", "--pretrained", clip, "--model", "RN5", *output)
    refused("No such file", "openclip", "--pretrained", clip, "--model", tmp_path / "absent.json", *output)
    (tmp_path / "bad.json").write_text('{"image": 1, "text": 2}')
    refused(
        "bad.json: the model description", "openclip", "--pretrained", clip, "--model", tmp_path / "bad.json", *output
    )
    refused(
        "the vocabulary 'cocos' does not exist; give a json file, or one of ade20k_150",
        "fcclip",
        "--checkpoint",
        whole,
        *options,
        "--vocabulary",
        "cocos",
    )
    refused(
        "bad.json: the vocabulary needs",
        "fcclip",
        "--checkpoint",
        whole,
        *options,
        "--vocabulary",
        tmp_path / "bad.json",
    )
    refused("its tags are: openai,", "openclip", "--pretrained", "laion", "--model", "RN50", *output)

    def offline(config):
        raise ConnectionError("Name or service not known\nand much more")

    monkeypatch.setattr(package, "download_pretrained", offline)
    sentence = "cannot be downloaded (Name or service not known and much more); check the network"
    refused(sentence, "openclip", "--pretrained", "openai", "--model", "RN50", *output)


def test_missing_packages(tmp_path, refused, resnet, monkeypatch):
    _, options = resnet
    (tmp_path / "w.pth").write_bytes(pickle.dumps({}))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    refused(
        "needs torch, which is not installed: pip install 'fcclip-jax[convert]', or save the weights again",
        "fcclip",
        "--checkpoint",
        tmp_path / "w.pth",
        *options,
    )
    refused(
        "needs open_clip, which is not installed: pip install 'fcclip-jax[convert]'",
        "openclip",
        "--pretrained",
        "openai",
        *options,
    )


def test_outputs_that_cannot_be(tmp_path, files, refused, resnet):
    tensors, options = resnet
    weights = write_weights(tmp_path / "w.safetensors", tensors)
    made = files("fcclip", "made", checkpoint=weights, model=tmp_path / "clip.json")
    refused("exists already", "fcclip", "--checkpoint", weights, *options)
    files("fcclip", "made", "--overwrite", checkpoint=weights, model=tmp_path / "clip.json")
    there = ["torch", "--checkpoint", made, "--output"]
    refused("exists already; choose another name, or overwrite it (--overwrite)", *there, weights)
    refused("back.npz ends in .npz; end it in .safetensors or .pth", *there, tmp_path / "back.npz")
    refused("absent does not exist; create it first", *there, tmp_path / "absent" / "back.pth")
    refused("is a file, not a checkpoint directory", "torch", "--checkpoint", weights, *there[3:], tmp_path / "x.pth")


def test_a_full_disk(tmp_path, files, refused, resnet):
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")
    need_torch()
    tensors, options = resnet
    weights = write_weights(tmp_path / "w.safetensors", tensors)
    made = files("fcclip", "good", checkpoint=weights, model=tmp_path / "clip.json")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, old[1]))
    sentence = "File too large; free some space"
    try:
        refused(sentence, "fcclip", "--checkpoint", weights, *options)
        for name in ("back.safetensors", "back.pth"):
            refused(sentence, "torch", "--checkpoint", made, "--output", tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_interrupted(tmp_path, resnet, capsys, monkeypatch):
    tensors, options = resnet
    weights = write_weights(tmp_path / "w.safetensors", tensors)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(directory, "_put_in_place", interrupt)
    before = sorted(tmp_path.iterdir())
    assert main(["fcclip", "--checkpoint", str(weights), *map(str, options)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted" and sorted(tmp_path.iterdir()) == before


def test_half(tmp_path, files, refused, resnet):
    tensors, _ = resnet
    weights = write_weights(tmp_path / "w.safetensors", tensors)
    made = files("fcclip", "made", checkpoint=weights, model=tmp_path / "clip.json")
    half = files("half", "half", checkpoint=made)
    whole, rounded = checkpoint.read(made), checkpoint.read(half)
    for name, array in whole.parameters.items():
        np.testing.assert_array_equal(rounded.parameters[name], array.astype(np.float16).astype(np.float32))
    empty = {"parameters": {}, "ignored": {}, "text_sha256": ""}
    assert rounded._replace(**empty) == whole._replace(**empty)
    refused("exists already", "half", "--checkpoint", made, "--output", half)


def test_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fcclip", "--output", "x"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the following arguments are required: --checkpoint, --model" in error


def test_neither_torch_nor_open_clip_is_needed_for_safetensors(tmp_path, resnet):
    tensors, options = resnet
    weights = write_weights(tmp_path / "w.safetensors", tensors)
    code = (
        "import sys; from convert.__main__ import main; code = main(sys.argv[1:]);"
        " sys.exit(code or 10 * bool({'torch', 'open_clip', 'tensorflow'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "fcclip", "--checkpoint", weights, *options]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 0 and "warning:" not in finished.stderr, finished.stderr
