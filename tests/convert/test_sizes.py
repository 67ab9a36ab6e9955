"""A CLIP of smaller kernels and fewer tokens than OpenCLIP's models, converted to the official keys and back."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from convert.__main__ import main
from convert.fcclip import CLIP_PREFIX
from fcclip_jax import checkpoint
from fcclip_jax.checkpoint import Checkpoint, Origin
from fcclip_jax.conventions import END_ID, START_ID
from fcclip_jax.models import description_json
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.text.vocabulary import Vocabulary
from tests.convert.tiny import CLIPS, model_description

IDS = (0, 320, 2368, START_ID, END_ID)
"""Padding, "a", "cat", start, end."""


def small_model(kernel_sizes):
    clip = CLIPS["convnext"]
    clip = dataclasses.replace(
        clip,
        image=dataclasses.replace(clip.image, kernel_sizes=kernel_sizes),
        text=dataclasses.replace(clip.text, token_ids=IDS, vocab_size=len(IDS)),
    )
    return dataclasses.replace(model_description("convnext"), clip=clip)


def save(path, description):
    variables = named_variables(random_model(description))
    parameters = {name: np.asarray(value[...]) for name, value in variables.items()}
    words = Vocabulary.from_words(["cat"])
    checkpoint.save(path, Checkpoint(description, parameters, words, "", Origin("random", ""), None, {}))


def test_the_official_sizes_compute_the_same(tmp_path):
    description = small_model((3, 1, 5, 7))
    save(tmp_path / "small", description)
    weights = tmp_path / "official.safetensors"
    assert main(["torch", "--checkpoint", str(tmp_path / "small"), "--output", str(weights)]) == 0
    tensors = safetensors.numpy.load_file(weights)
    table = tensors[f"{CLIP_PREFIX}token_embedding.weight"]
    assert table.shape == (49408, 8) and set(np.flatnonzero(table.any(axis=1))) == set(IDS)
    assert tensors[f"{CLIP_PREFIX}visual.trunk.stages.0.blocks.0.conv_dw.weight"].shape == (4, 1, 7, 7)

    text = dataclasses.replace(description.clip.text, token_ids=None, vocab_size=49408)
    official = dataclasses.replace(CLIPS["convnext"], text=text)
    (tmp_path / "clip.json").write_text(json.dumps(description_json.to_json(official)))
    made = ["--model", str(tmp_path / "clip.json"), "--output", str(tmp_path / "made")]
    assert main(["fcclip", "--checkpoint", str(weights), *made]) == 0
    small, clip = (checkpoint.load(tmp_path / name).model.clip for name in ("small", "made"))

    rows = jnp.asarray([[3, 1, 2, 4, 0, 0, 0]])
    ids = jnp.asarray(IDS)[rows]
    # The same sums in the same order, with zeros between them.
    np.testing.assert_allclose(clip.text(ids), small.text(rows), rtol=1e-6)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, 96, 3), np.float32))
    valid_hw = jnp.asarray([[64, 96]])
    found, expected = (each.image(images, valid_hw).clip_dense for each in (clip, small))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected).max() > 0.1


def test_larger_kernels_are_refused(tmp_path, capsys):
    save(tmp_path / "large", small_model((7, 9, 7, 7)))
    output = tmp_path / "official.safetensors"
    assert main(["torch", "--checkpoint", str(tmp_path / "large"), "--output", str(output)]) == 2
    assert "stage 1 has 9x9 kernels, but those of the official keys are 7x7" in capsys.readouterr().err
    assert not output.exists()
