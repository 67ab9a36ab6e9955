"""Tests what `fcclip demo` refuses before it loads a model, and what its page says of a model."""

import socket
import sys

import pytest

from fcclip_jax import cli
from fcclip_jax.commands import demo
from tests.commands.segmenting import fails


def test_a_port_in_use(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        sentence = fails(capsys, cli.main(["demo", "--port", str(port)]))
    assert sentence == (
        f"error: cannot listen at 127.0.0.1:{port} (Address already in use); choose another --port or --host"
    )


def test_without_gradio(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    sentence = fails(capsys, cli.main(["demo"]))
    assert sentence == "error: the page needs gradio, which is not installed: pip install 'fcclip-jax[demo]'"


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_an_impossible_port(capsys, port):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--port", port])
    assert stop.value.code == 2
    assert f"error: argument --port: {port!r} is not a p" in capsys.readouterr().err


def test_the_page_names_the_model_and_its_licence():
    world = demo.about("world")
    assert world.text.startswith("Model: `world`, ") and "Licence: Apache-2.0." in world.text
    assert (world.words, world.stuff) == ("snow, mailbox, butterfly, saw, doughnut, sunglasses", "snow")
    assert [example.photo.name for example in world.examples][:2] == ["snow.jpg", "night.jpg"]
    assert world.examples[1].stuff == "night sky, brick wall"
    assert "Licence: non-commercial." in demo.about("fcclip_coconut_s").text


def test_the_licence_of_a_folder_is_its_publishers(tmp_path):
    about = demo.about(str(tmp_path / "my_model"))
    assert about.text == "Model: `my_model`. Its licence is its publisher's." and not about.examples
