"""The page as its users start it and as visitors use it."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Self

import pytest

from tests.demo import browser
from tests.demo.answers_known import PICTURES

NEEDS_BROWSER = pytest.mark.skipif(
    browser.find() is None, reason=f"no browser is installed: none of {', '.join(browser.NAMES)} is on the PATH"
)


class Server:
    """`fcclip demo`, or a module that varies it, in a process of its own, until the end of a `with` block."""

    def __init__(self, folder: pathlib.Path, *module: str, environment: Mapping[str, str] | None = None):
        """folder: for the log and for temporary files."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self._log = folder / "log"
        with self._log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *module, "--port", str(self.port)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "TMPDIR": str(self.temporary),
                    "NO_PROXY": "127.0.0.1",
                    **(environment or {}),
                },
            )

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 2 * browser.PATIENCE
        while f"ready at {self.url}" not in self.output():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                pytest.fail(self.output())
            time.sleep(0.1)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def output(self) -> str:
        return self._log.read_text()

    def uploads(self) -> list[pathlib.Path]:
        """Returns the files that visitors have sent, without the page's own examples."""
        own = {path.name for path in PICTURES.iterdir()}
        return [path for path in self.temporary.rglob("fcclip_demo_*/**/*") if path.is_file() and path.name not in own]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=browser.PATIENCE)


def name_words(visitor: browser.Visitor, words: str, stuff: str) -> None:
    """Fills in the words, once the page is there."""
    visitor.wait_for("!!document.querySelector('input[type=file]')")
    visitor.type_into("Words", words)
    visitor.type_into("Stuff", stuff)


def segment(visitor: browser.Visitor, photo: pathlib.Path, words: str, stuff: str) -> None:
    """Fills the page in and uploads the photograph."""
    name_words(visitor, words, stuff)
    visitor.upload(photo)


def names(visitor: browser.Visitor) -> list[str]:
    """Returns the names in the table, once there is one."""
    return visitor.wait_for(
        "[...document.querySelectorAll('#result tbody tr')].map((row) => row.cells[0].innerText.trim())"
        ".join('|') || false"
    ).split("|")
