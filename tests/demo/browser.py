"""Chromium without a window, driven through its DevTools protocol over a pair of pipes, so that no package is needed."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120
"""Seconds until the browser or the page must have answered: long, because tests may share the cores."""


def find() -> str | None:
    """Returns the browser's path, None if there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """A running browser: messages are JSON, each ended by a zero byte."""

    def __init__(self, to_browser: int, from_browser: int):
        self._to_browser, self._from_browser = to_browser, from_browser
        self._unread = b""
        self._last_id = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events that arrive meanwhile are appended to `events`."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last_id:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def visit(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 900,
        phone: bool = False,
        permissions: Sequence[str] = (),
    ) -> "Visitor":
        """Opens a page for a new visitor, who shares no cookies or storage with others.

        permissions: what the visitor allows every page, by DevTools' names.
        """
        context = self.send("Target.createBrowserContext")["browserContextId"]
        if permissions:
            self.send("Browser.grantPermissions", permissions=list(permissions), browserContextId=context)
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        visitor = Visitor(self, self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        visitor.send("Page.enable")
        visitor.send("Network.enable")
        visitor.send("Emulation.setFocusEmulationEnabled", enabled=True)  # only a page in focus may read the clipboard
        visitor.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        if phone:
            visitor.send("Emulation.setTouchEmulationEnabled", enabled=True)
        visitor.send("Page.navigate", url=url)
        return visitor

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            part = os.read(self._from_browser, 1 << 20)
            assert part, "the browser has ended"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


class Visitor:
    """One page."""

    def __init__(self, browser: Browser, session: str):
        self._browser, self._session = browser, session

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.send(method, self._session, **params)

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Returns the expression's value as soon as it is true."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, (
                f"{expression} stays {value!r}; {self.evaluate('document.body.innerText')}"
            )
            time.sleep(0.05)
        return value

    def requests(self) -> list[str]:
        """Returns the addresses that the page has asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self._browser.events
            if event.get("sessionId") == self._session and event["method"] == "Network.requestWillBeSent"
        ]

    def upload(self, file: pathlib.Path) -> None:
        """Gives a file to the page's first file input."""
        self.wait_for("!!document.querySelector('input[type=file]')")
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def type_into(self, label: str, text: str) -> None:
        """Replaces the text of the field with this label."""
        self.wait_for(
            f"""(() => {{
                const field = [...document.querySelectorAll("label")]
                  .find((label) => label.innerText.trim().startsWith({json.dumps(label)}))?.querySelector("textarea, input");
                if (!field) return false;
                field.focus(); field.select();
                return true;
            }})()"""
        )
        self.send("Input.insertText", text=text)

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """Scrolls an element into view and returns its left, top, width and height in the window."""
        box = self.evaluate(
            f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                element.scrollIntoView({{block: "center", behavior: "instant"}});
                const box = element.getBoundingClientRect();
                return [box.left, box.top, box.width, box.height];
            }})()"""
        )
        return tuple(box)

    def hover(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def tap(self, x: float, y: float) -> None:
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def screenshot(self, path: pathlib.Path) -> None:
        """Writes the whole page as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


@contextlib.contextmanager
def started(profile: pathlib.Path) -> Iterator[Browser]:
    """Starts the browser and ends it.

    profile: the folder of its settings.
    """
    # The browser reads commands from descriptor 3 and writes answers to 4.
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    shell = f'exec "$@" 3<&{command_read} 4>&{answer_write}'
    flags = [
        "--headless=new",
        "--remote-debugging-pipe",
        "--no-sandbox",  # root, as in containers, cannot have one
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--use-fake-device-for-media-stream",  # a camera that shows a moving pattern
        f"--user-data-dir={profile}",
    ]
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", str(find()), *flags],
        pass_fds=(command_read, answer_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(command_read)
    os.close(answer_write)
    browser = Browser(command_write, answer_read)
    try:
        yield browser
        browser.send("Browser.close")
    finally:
        os.close(command_write)
        os.close(answer_read)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
