"""Checkpoint directories: the round trip, damage, and what may be overwritten."""

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

import fcclip_jax
from fcclip_jax import checkpoint
from fcclip_jax.checkpoint import Checkpoint, Origin, arrays, directory, record, text_fingerprint
from fcclip_jax.conventions import END_ID, START_ID
from fcclip_jax.models.building import abstract_model, named_variables
from fcclip_jax.text.vocabulary import Vocabulary
from tests.convert.tiny import CLIPS, model_description

VOCABULARY = Vocabulary.from_words(["cat, kitten", "sky"], stuff=["sky"])


@functools.cache
def contents(family: str = "convnext", *, clip_alone: bool = False) -> Checkpoint:
    description = CLIPS[family] if clip_alone else model_description(family)
    rng = np.random.default_rng(0)
    variables = named_variables(abstract_model(description))
    parameters = {name: rng.standard_normal(v.shape, np.float32) for name, v in variables.items()}
    return Checkpoint(
        description=description,
        parameters=parameters,
        training_vocabulary=None if clip_alone else VOCABULARY,
        text_sha256=text_fingerprint(description, parameters),
        source=Origin("weights.pth", "ab" * 32),
        clip_source=None if clip_alone else Origin("openai", "cd" * 32),
        ignored={"steps": np.asarray(2**40, np.int64), "mask": np.asarray([[-np.inf, 0.5]], np.float32)},
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    checkpoint.save(path, contents())
    return path


@pytest.fixture
def damaged(saved, tmp_path):
    """A copy of `saved`, to be damaged."""
    return shutil.copytree(saved, tmp_path / "damaged")


@pytest.mark.parametrize("family", ["convnext", "resnet"])
@pytest.mark.parametrize("clip_alone", [False, True])
def test_read_gives_what_was_saved(tmp_path, family, clip_alone):
    before = contents(family, clip_alone=clip_alone)
    checkpoint.save(tmp_path / "new" / "folder", before)
    after = checkpoint.read(tmp_path / "new" / "folder")
    for field in ("parameters", "ignored"):
        old, new = getattr(before, field), getattr(after, field)
        assert old.keys() == new.keys()
        for name in old:
            assert old[name].dtype == new[name].dtype
            np.testing.assert_array_equal(old[name], new[name])
        before, after = before._replace(**{field: {}}), after._replace(**{field: {}})
    assert before == after


def test_load_fills_the_model(saved):
    before = contents()
    loaded = checkpoint.load(str(saved))
    assert loaded[1:] == (before.description, VOCABULARY, before.text_sha256, None)
    abstract = named_variables(abstract_model(before.description))
    variables = named_variables(loaded.model)
    assert variables.keys() == abstract.keys()
    for name, variable in variables.items():
        assert type(variable) is type(abstract[name]) and isinstance(variable.get_value(), jax.Array)
        np.testing.assert_array_equal(variable.get_value(), before.parameters[name])


def test_known_words(damaged, tmp_path):
    checkpoint.save(tmp_path / "model", contents()._replace(known_words=("cat", "night sky")))
    assert checkpoint.read(tmp_path / "model").known_words == ("cat", "night sky")
    assert checkpoint.load(tmp_path / "model").known_words == ("cat", "night sky")
    record = json.loads((damaged / "fcclip.json").read_text())
    del record["known_words"]  # as earlier versions wrote it
    (damaged / "fcclip.json").write_text(json.dumps(record))
    assert checkpoint.read(damaged).known_words is None
    rewrite(damaged, known_words=[])
    with pytest.raises(ValueError, match=r"fcclip.json: known_words is \[\], not a list of words"):
        checkpoint.read(damaged)


def stored_bytes(path):
    return sum(file.stat().st_size for file in (path / "params").rglob("d/*"))


def test_no_file_has_the_path_that_was_written_to(tmp_path):
    """Checkpoints are published; the packaged one is."""
    checkpoint.save(tmp_path / "a_secret_name" / "model", contents())
    files = [file for file in (tmp_path / "a_secret_name" / "model").rglob("*") if file.is_file()]
    assert "commit_success.txt" in {file.name for file in files}
    for file in files:
        assert b"a_secret_name" not in file.read_bytes(), file


def test_half_the_space(saved, tmp_path):
    before, path = contents(), tmp_path / "half"
    checkpoint.save(path, before, dtype="float16")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.metadata(path / "params").item_metadata.tree
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
    # Half of the arrays' bytes, less the indexes, whose number depends on how orbax's threads happen to share the work.
    whole = sum(array.nbytes for array in before.parameters.values())
    assert stored_bytes(saved) - stored_bytes(path) > 0.4 * whole
    after, loaded = checkpoint.read(path), checkpoint.load(path)
    variables = named_variables(loaded.model)
    assert after.parameters.keys() == variables.keys() == before.parameters.keys()
    for name, array in before.parameters.items():
        rounded = array.astype(np.float16).astype(np.float32)
        for found in (after.parameters[name], np.asarray(variables[name][...])):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, rounded)
    # Cached embeddings of the exact weights are not those of the rounded ones.
    assert before.text_sha256 != after.text_sha256 == text_fingerprint(after.description, after.parameters)
    checkpoint.save(tmp_path / "again", after)
    assert checkpoint.read(tmp_path / "again").text_sha256 == after.text_sha256


def test_values_too_large_for_half(tmp_path):
    array = np.full(12, 65504, np.float32)
    checkpoint.save(
        tmp_path / "fits", contents()._replace(parameters=without("x") | {"void_embedding": array}), dtype="float16"
    )
    array[3] = -1e6
    with pytest.raises(ValueError, match="^void_embedding has values up to 1e\\+06, but float16 holds 65504 at most"):
        checkpoint.save(
            tmp_path / "model",
            contents()._replace(parameters=without("x") | {"void_embedding": array}),
            dtype="float16",
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["fits"]


def test_the_packages_own_checkpoint(tmp_path, monkeypatch):
    assert directory.PACKAGED_WORLD == epath.Path(fcclip_jax.__path__[0]) / "world" / "checkpoint"
    monkeypatch.setattr(directory, "PACKAGED_WORLD", epath.Path(tmp_path / "package"))
    monkeypatch.chdir(tmp_path)
    for reader in (checkpoint.load, checkpoint.read):
        with pytest.raises(FileNotFoundError, match="^this installation has no weights named world$"):
            reader("world")
    checkpoint.save(tmp_path / "package", contents(), dtype="float16")
    assert checkpoint.load("world").text_sha256 == checkpoint.read("world").text_sha256 != contents().text_sha256
    # A path of that name wins.
    checkpoint.save("world", contents())
    assert checkpoint.load("world").text_sha256 == checkpoint.read("world").text_sha256 == contents().text_sha256


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_load_compiles_nothing(tmp_path, dtype):
    saved, compiled = tmp_path / "model", []
    checkpoint.save(saved, contents(), dtype=dtype)

    def listener(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        checkpoint.load(saved)
        assert not compiled
        jax.jit(lambda x: x * 3.25)(np.float32(1))
        assert compiled, "the listener must record a compilation"
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def rewrite(path, **changes):
    file = path / "fcclip.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def without(name):
    return {key: array for key, array in contents().parameters.items() if key != name}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda: without("void_embedding"), "void_embedding is missing;"),
        (lambda: without("x") | {"extra": np.zeros(3)}, "the model has no extra;"),
        (
            lambda: without("x") | {"void_embedding": np.zeros(13, np.float32)},
            r"void_embedding is float32\[13\] instead of float32\[12\]",
        ),
        (
            lambda: without("x") | {"void_embedding": np.zeros(12, np.float64)},
            r"void_embedding is float64\[12\] instead of float32\[12\]",
        ),
        (lambda: {"only": np.zeros(1)}, r"is missing, .* and \d+ more;"),
    ],
)
def test_parameters_that_do_not_fit(tmp_path, change, complaint):
    checkpoint.save(tmp_path / "model", contents()._replace(parameters=change()))
    with pytest.raises(ValueError, match=f"the weights in .* do not fit the model .*{complaint}") as caught:
        checkpoint.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def remove_data(path):
    for folder in path.rglob("d"):
        shutil.rmtree(folder)


def shorten_data(path):
    for file in path.rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garble_metadata(path):
    file = path / "params" / "_METADATA"
    file.write_text("x" * file.stat().st_size)


def write(name, text):
    return lambda path: (path / name).write_text(text)


@pytest.mark.parametrize(
    ("harm", "kind", "complaint"),
    [
        (
            lambda path: shutil.rmtree(path),
            FileNotFoundError,
            "does not exist; check the path, choose a name .*, or make one .* fcclip`",
        ),
        (lambda path: (path / "fcclip.json").unlink(), FileNotFoundError, "has no fcclip.json"),
        (lambda path: shutil.rmtree(path / "params"), ValueError, "is missing; copy or convert the checkpoint again"),
        (remove_data, ValueError, "is missing; copy or convert the checkpoint again"),
        (shorten_data, ValueError, r"has \d+ bytes instead of \d+; copy or convert the checkpoint again"),
        (garble_metadata, ValueError, "_METADATA does not match its checksum in fcclip.json; copy or convert"),
        (
            lambda path: garble_metadata(path) or rewrite(path, files_sha256=None),  # as earlier versions wrote it
            ValueError,
            r"params are damaged \(.*; copy or convert the checkpoint again",
        ),
        (write("fcclip.json", "{"), ValueError, "fcclip.json is not JSON"),
        (write("fcclip.json", "[]"), ValueError, "an entry of the description is missing or malformed"),
        (write("fcclip.json", "[" * 100_000), ValueError, "fcclip.json is not JSON"),
        (lambda path: (path / "fcclip.json").write_bytes(b"\xff\xfe\xff"), ValueError, "fcclip.json is not JSON"),
        (
            lambda path: rewrite(path, format=2),
            ValueError,
            "format 2, but this version of fcclip_jax reads format 1; install the newest",
        ),
        (lambda path: rewrite(path, kind="gan"), ValueError, "an entry of the description is missing or malformed"),
        (lambda path: rewrite(path, source="me"), ValueError, "an entry of the description is missing or malformed"),
        (
            lambda path: rewrite(path, training_vocabulary=None),
            ValueError,
            "an entry of the description is missing or malformed",
        ),
        (lambda path: rewrite(path, training_vocabulary={}), ValueError, "the vocabulary needs"),
        (
            lambda path: rewrite(path, description={"clip": 1}),
            ValueError,
            "the model description has 1 where ClipDescription is",
        ),
        (
            lambda path: rewrite(path, parameters_sha256=["ab"]),
            ValueError,
            r"parameters_sha256 is \['ab'\], not checksums by name",
        ),
        (lambda path: rewrite(path, parameters_sha256={}), ValueError, "does not match its checksum in fcclip.json"),
        (lambda path: rewrite(path, ignored={"a": {"dtype": "O"}}), ValueError, "the tensor 'a' is malformed"),
    ],
)
def test_damage_is_one_sentence(damaged, capfd, harm, kind, complaint):
    harm(damaged)
    for reader in (checkpoint.load, checkpoint.read):
        with pytest.raises(kind, match=complaint) as caught:
            reader(damaged)
        assert "\n" not in str(caught.value) and str(damaged) in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_flipped_bit_is_noticed(tmp_path, monkeypatch, dtype):
    saved = tmp_path / "model"
    monkeypatch.setattr(record, "INDEX_BYTES", 0)  # the files of a small model would be verified first
    checkpoint.save(saved, contents(), dtype=dtype)
    expected = contents().parameters["pixel_decoder.mask_features.weight"].astype(dtype)
    sums = json.loads((saved / "fcclip.json").read_text())["parameters_sha256"]
    assert sums.keys() == contents().parameters.keys()
    assert sums["pixel_decoder.mask_features.weight"] == hashlib.sha256(expected.tobytes()).hexdigest()
    [file] = [file for file in saved.rglob("d/*") if expected.tobytes() in file.read_bytes()]
    data = bytearray(file.read_bytes())
    data[data.index(expected.tobytes()) + 6] ^= 1
    file.write_bytes(data)
    complaint = (
        f"the weights in {saved} are damaged: pixel_decoder.mask_features.weight does not match its checksum in fcclip.json;"
        " copy or convert the checkpoint again"
    )
    for reader in (checkpoint.load, checkpoint.read):
        with pytest.raises(ValueError) as caught:
            reader(saved)
        assert str(caught.value) == complaint
    # Checkpoints of earlier versions have no checksums.
    description = json.loads((saved / "fcclip.json").read_text())
    del description["parameters_sha256"], description["files_sha256"]
    (saved / "fcclip.json").write_text(json.dumps(description))
    found = checkpoint.read(saved).parameters["pixel_decoder.mask_features.weight"]
    assert np.sum(found != expected) == 1


def test_a_flipped_bit_in_an_index_is_noticed(damaged, capfd):
    rng = np.random.default_rng(0)
    for file in sorted(file for file in damaged.rglob("params/**/*") if file.is_file()):
        whole = file.read_bytes()
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        file.write_bytes(data)
        with pytest.raises(ValueError) as caught:
            checkpoint.read(damaged)
        assert str(caught.value) == (
            f"{file} does not match its checksum in fcclip.json; copy or convert the checkpoint again"
        )
        file.write_bytes(whole)
    assert capfd.readouterr() == ("", "")
    checkpoint.read(damaged)


@pytest.mark.parametrize("size", [1, 2**10, 2**40])
def test_arrays_are_read_in_groups(saved, monkeypatch, size):
    groups = []
    monkeypatch.setattr(arrays, "GROUP_BYTES", size)
    restore = ocp.Checkpointer.restore
    monkeypatch.setattr(
        ocp.Checkpointer,
        "restore",
        lambda self, path, args: groups.append(list(args.restore_args)) or restore(self, path, args),
    )
    found = checkpoint.read(saved).parameters
    before = contents().parameters
    assert sorted(itertools.chain(*groups)) == sorted(before) and found.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(found[name], array)
    for group in groups:
        assert len(group) == 1 or sum(before[name].nbytes for name in group) <= size
    assert (len(groups) == len(before)) == (size == 1) and (len(groups) == 1) == (size == 2**40)


def test_sizes_without_a_model(damaged):
    record = json.loads((damaged / "fcclip.json").read_text())["description"]
    record["head"]["encoder_ffn_dim"] = -1
    rewrite(damaged, description=record)
    with pytest.raises(ValueError, match="fcclip.json: no model can be built with the described sizes"):
        checkpoint.load(damaged)
    record["head"]["hidden_dim"] = -1
    rewrite(damaged, description=record)
    with pytest.raises(ValueError, match="fcclip.json: a width of -1 cannot be split among 8 heads"):
        checkpoint.load(damaged)


def test_an_address_on_no_known_storage():
    with pytest.raises(
        ValueError, match=r"https://host/model is on no storage that can be read \(https://\); give a folder"
    ):
        checkpoint.find("https://host/model")


def test_a_file_is_no_checkpoint(tmp_path):
    file = tmp_path / "fcclip_cocopan.pth"
    file.write_bytes(b"weights")
    with pytest.raises(ValueError, match=f"is a file, .*{checkpoint.convert_command()} fcclip --checkpoint {file}"):
        checkpoint.load(file)


def test_a_clip_alone_is_no_model(tmp_path):
    checkpoint.save(tmp_path / "clip", contents(clip_alone=True))
    with pytest.raises(ValueError, match=f"contains a CLIP alone, .*{checkpoint.convert_command()} fcclip --clip"):
        checkpoint.load(tmp_path / "clip")


def test_overwriting_is_asked_for(saved, tmp_path):
    path = tmp_path / "model"
    checkpoint.save(path, contents())
    with pytest.raises(FileExistsError, match="exists already"):
        checkpoint.save(path, contents())
    changed = contents()._replace(source=Origin("other", ""))
    checkpoint.save(path, changed, overwrite=True)
    assert checkpoint.read(path).source.name == "other"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_only_a_checkpoint_is_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not a checkpoint, so it is not overwritten"):
        checkpoint.save(tmp_path, contents(), overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failed_save_leaves_everything_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "model"
    checkpoint.save(path, contents())

    def fail(self, folder, args):
        folder.mkdir()
        (folder / "half").write_text("a file")
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nand more")

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    for target, overwrite in ((path, True), (tmp_path / "other" / "deep", False)):
        with pytest.raises(OSError, match="cannot be written: RESOURCE_EXHAUSTED: No space left on device$"):
            checkpoint.save(target, contents(), overwrite=overwrite)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert checkpoint.read(path).source == contents().source


def test_a_full_disk_is_noticed_before_writing(tmp_path, capfd):
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, old[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written: it takes 0\.\d MiB: File too large; free some space"):
            checkpoint.save(tmp_path / "model", contents())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_fingerprint_is_of_all_that_the_text_tower_answers_by():
    base = contents(clip_alone=True)

    def fingerprint(description=base.description, **changes):
        return text_fingerprint(description, {**base.parameters, **changes})

    assert fingerprint() == base.text_sha256
    quick = model_description("convnext").clip.text.__class__(**vars(base.description.text) | {"quick_gelu": True})
    assert fingerprint(base.description.__class__(image=base.description.image, text=quick)) != base.text_sha256
    name = "clip.text.ln_final.weight"
    assert fingerprint(**{name: base.parameters[name] + np.float32(1e-6)}) != base.text_sha256
    assert fingerprint(**{"clip.logit_scale": np.float32(9)}) == base.text_sha256
    # As computed before descriptions had token_ids: cached embeddings stay valid.
    assert base.text_sha256 == "3987a6d0f033d34fcacd3878d25d599ec00dde1083febbe33337aa0068ba7056"
    ids = (*range(18), START_ID, END_ID)
    some = dataclasses.replace(base.description.text, token_ids=ids)
    assert fingerprint(dataclasses.replace(base.description, text=some)) != base.text_sha256
    whole = contents()
    assert text_fingerprint(whole.description, whole.parameters) == whole.text_sha256


@pytest.mark.parametrize(
    ("raised", "kind", "sentence"),
    [
        (MemoryError(), MemoryError, "^not enough memory to read the weights in .*params$"),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory"), MemoryError, "^not enough memory to read the weights in"),
        (
            PermissionError(13, "Permission denied"),
            PermissionError,
            "^the weights in .*params may not be read .permission denied.; change the rights of these files$",
        ),
        (ValueError("PERMISSION_DENIED: Error opening file"), PermissionError, "may not be read"),
        (ValueError("DATA_LOSS: it ends early"), ValueError, r"are damaged \(DATA_LOSS: it ends early\)"),
    ],
)
def test_what_is_no_damage_is_not_called_so(saved, monkeypatch, raised, kind, sentence):
    """orbax wraps the errors of tensorstore."""

    def restore(*_, **__):
        raise raised if kind is ValueError else ValueError("reading failed") from raised

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    with pytest.raises(kind, match=sentence):
        checkpoint.read(saved)
