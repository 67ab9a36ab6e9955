"""Tests the command line's help and its list of vocabularies."""

import pytest

from fcclip_jax import cli
from fcclip_jax.text import vocabulary


def test_vocabularies_are_listed(capsys):
    assert cli.main(["vocabularies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(vocabulary.shipped())
    assert "coco_panoptic 133 80" in [" ".join(line.split()[i] for i in (0, 1, 3)) for line in lines]


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
    error = "error: the following arguments are required: {segment,vocabularies,prepare,annotate}; see fcclip --help\n"
    assert capsys.readouterr().err == error
