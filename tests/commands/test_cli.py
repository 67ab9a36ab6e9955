"""Tests the command line's help and its list of vocabularies."""

import os
import subprocess
import sys

import pytest

from fcclip_jax import cli
from fcclip_jax.text import vocabulary
from fcclip_jax.world import words


def test_vocabularies_are_listed(capsys):
    assert cli.main(["vocabularies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(vocabulary.shipped())
    assert "coco_panoptic 133 80" in [" ".join(line.split()[i] for i in (0, 1, 3)) for line in lines]


def test_the_classes_of_a_vocabulary_are_listed(capsys):
    assert cli.main(["vocabularies", "cityscapes"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 19 and lines[-1].startswith("bicycle, ") and lines[-1].endswith(" thing")
    assert lines[0].startswith("road") and lines[0].endswith(" stuff")


def test_unseen_words_of_the_world_are_marked(capsys):
    assert cli.main(["vocabularies", "world"]) == 0
    rows = [line.rsplit("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[part.strip() for part in row if part] for row in rows]
    assert [row[0] for row in rows] == list(words.WORDS)
    assert {row[0] for row in rows if row[-1] == "unseen"} == {*words.WORDS} - words.SEEN
    assert [row[0] for row in rows if row[1] == "stuff"] == list(words.STUFF)


def test_an_unknown_vocabulary(capsys):
    assert cli.main(["vocabularies", "ade20k"]) == 2
    assert "no vocabulary is called 'ade20k': did you mean ade20k_" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    out, module = capsys.readouterr().out, cli.COMMANDS[command]
    assert out.startswith(f"usage: fcclip {command} ")
    assert module.DESCRIPTION in out and (module.EPILOG or "") in out


def test_a_command_is_required(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    error = "error: the following arguments are required: {segment,demo,weights,vocabularies,prepare,annotate}; see fcclip --help\n"
    assert capsys.readouterr().err == error


def test_a_reader_that_ends_early():
    """As in `fcclip vocabularies ade20k_847 | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "fcclip_jax.cli", "vocabularies", "ade20k_847"],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        text=True,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_home_that_does_not_exist(capsys, monkeypatch):
    monkeypatch.setenv("FCCLIP_JAX_CACHE", "~nobody of this name/cache")
    assert cli.main(["weights"]) == 2
    assert capsys.readouterr().err == "error: a home folder is unknown; set HOME, or write paths without ~\n"
