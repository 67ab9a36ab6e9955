"""What remains of a visit: photographs that were uploaded, pasted or taken by a camera, and words."""

import argparse
import base64
import pathlib
import time

import pytest

from fcclip_jax.commands import demo
from fcclip_jax.demo import serving
from tests.demo import browser
from tests.demo.visiting import NEEDS_BROWSER, Server, name_words, names, segment


def files_below(folder: pathlib.Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def wait_until(condition) -> None:
    deadline = time.monotonic() + browser.PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def press(visitor: browser.Visitor, button: str) -> None:
    """Presses the button with this label or text, once there is one."""
    visitor.wait_for(
        "(() => { const button = [...document.querySelectorAll('button')].find((button) =>"
        f" [button.getAttribute('aria-label'), button.innerText.trim()].includes('{button}'));"
        " button?.click(); return !!button; })()"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("machine")


@pytest.fixture(scope="module")
def server(folder):
    """The page on a machine where everything that a process may write is below the folder."""
    places = {"HOME": "home", "XDG_CACHE_HOME": "cache", "FCCLIP_JAX_CACHE": "fcclip"}
    environment = {name: str(folder / place) for name, place in places.items()}
    with Server(folder, "tests.demo.forgetful", environment=environment) as server:
        yield server


@NEEDS_BROWSER
def test_nothing_remains_of_a_visit(server, folder, chromium, photo):
    before = files_below(folder)
    uploading = chromium.visit(server.url)
    segment(uploading, photo, "snow, mailbox", "snow")
    assert set(names(uploading)) == {"snow", "mailbox"}

    pasting = chromium.visit(server.url, permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    name_words(pasting, "snow, butterfly", "snow")
    encoded = base64.b64encode(photo.read_bytes()).decode()
    pasting.evaluate(
        f"""(async () => {{
            const blob = await (await fetch("data:image/png;base64,{encoded}")).blob();
            await navigator.clipboard.write([new ClipboardItem({{"image/png": blob}})]);
        }})()"""
    )
    press(pasting, "Paste from clipboard")
    assert set(names(pasting)) == {"snow", "butterfly"}

    filming = chromium.visit(server.url, permissions=["videoCapture"])
    name_words(filming, "snow, rainbow", "snow")
    press(filming, "Capture from camera")
    press(filming, "Click to Access Webcam")
    filming.wait_for("document.querySelector('video')?.readyState === 4")
    press(filming, "capture photo")
    sentence = filming.wait_for("document.querySelector('#sentence .sentence')?.innerText || false")
    assert sentence.endswith(" 2 classes: snow (stuff), rainbow."), sentence

    wait_until(lambda: not server.uploads())
    assert files_below(folder) == before
    ready = f"ready at {server.url} (Ctrl-C ends it)"
    assert [line for line in server.output().splitlines() if not line.startswith("compiling ")] == [ready]


@NEEDS_BROWSER
def test_an_upload_that_was_deleted_gets_a_sentence(server, chromium, photo):
    visitor = chromium.visit(server.url)
    segment(visitor, photo, "snow, mailbox", "snow")
    assert names(visitor)
    wait_until(lambda: not server.uploads())
    press(visitor, "Segment")
    assert visitor.wait_for(
        "(document.querySelector('#sentence .sentence')?.innerText || '').includes('no longer here') &&"
        " document.querySelector('#sentence .sentence').innerText"
    ) == ("The file my_photo.png is no longer here, because uploads are deleted; upload it again.")


class Page:
    """Takes the place of Gradio's."""

    def __init__(self):
        self.asked = {}

    def queue(self, **settings):
        pass

    def launch(self, **settings):
        self.asked = settings
        return None, "http://127.0.0.1:7860/", "https://example.org/" if settings["share"] else None

    def close(self, **settings):
        pass


@pytest.mark.parametrize(
    ("arguments", "address"), [([], "http://127.0.0.1:7860/"), (["--share"], "https://example.org/")]
)
def test_a_public_address_is_opened_on_request_only(capsys, monkeypatch, arguments, address):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    share = parser.parse_args(arguments).share
    page = Page()
    monkeypatch.setattr(serving.threading, "Event", lambda: argparse.Namespace(wait=lambda: None))
    serving.serve(lambda: page, host="127.0.0.1", port=7860, share=share)
    assert page.asked["share"] is (arguments == ["--share"])  # not None, which lets Gradio choose
    assert capsys.readouterr().out == f"ready at {address} (Ctrl-C ends it)\n"
