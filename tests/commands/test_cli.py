"""Tests the command line's help and its list of vocabularies."""

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
