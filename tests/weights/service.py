"""A server on the loopback that answers like the Hugging Face hub and like Google Drive, as far as their clients look."""

import hashlib
import http.server
import re
import threading
import urllib.parse
from typing import NamedTuple

COMMIT = "0123456789abcdef" * 2 + "01234567"
QUOTA = "Too many users have viewed or downloaded this file recently."
QUOTA_PAGE = f"""<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">{QUOTA}</p></body></html>"""
# On one line, as Google's is: the client reads pages line by line.
CONFIRM_PAGE = (
    "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>"
    '<form id="download-form" action="{host}/download" method="get"><input type="submit" value="Download anyway"/>'
    '<input type="hidden" name="id" value="{id}"><input type="hidden" name="confirm" value="t"></form></body></html>'
)


class Seen(NamedTuple):
    """An answered request."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int
    """Bytes of the body."""


class Service:
    """The server: what it offers, and what it was asked."""

    def __init__(self):
        self.hub: dict[str, bytes] = {}
        """Files by REPOSITORY/resolve/REVISION/FILE."""
        self.drive: dict[str, bytes] = {}
        """Files by id."""
        self.confirm = self.quota = False
        """Whether Drive asks for a confirmation first, or refuses."""
        self.cuts: list[int] = []
        """After how many bytes the next downloads are cut off."""
        self.seen: list[Seen] = []
        self.pause = threading.Event()
        """Downloads wait for it."""
        self.pause.set()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def downloads(self) -> list[Seen]:
        """Returns the requests that sent a file, or a part of it: all but those that only look what is there."""
        return [
            seen
            for seen in self.seen
            if seen.method == "GET" and seen.status in (200, 206) and seen.range != "bytes=0-0"
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(service):
        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_HEAD(self):
                service._answer(self)

            def do_GET(self):
                service._answer(self)

        return Handler

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        url = urllib.parse.urlsplit(request.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path in ("/uc", "/download"):
            content = self.drive.get(query["id"])
            if self.quota:
                return self._send(request, 200, QUOTA_PAGE.encode(), {"Content-Type": "text/html; charset=utf-8"})
            if content is not None and self.confirm and url.path == "/uc":
                page = CONFIRM_PAGE.format(host=self.address, id=query["id"]).encode()
                return self._send(request, 200, page, {"Content-Type": "text/html; charset=utf-8"})
            headers = {"Content-Disposition": 'attachment; filename="weights.safetensors"'}
        else:
            content = self.hub.get(urllib.parse.unquote(url.path).removeprefix("/"))
            headers = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content or b""))}
        if content is None:
            return self._send(
                request, 404, b"<html>404</html>", {"Content-Type": "text/html", "X-Error-Code": "EntryNotFound"}
            )
        headers |= {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or ""):
            start, end = int(found[1]), int(found[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return self._send(request, 206, content[start : end + 1], headers)
        return self._send(request, 200, content, headers)

    def _send(self, request, status: int, body: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
            request.send_header(name, value)
        request.end_headers()
        sent = 0
        if request.command == "GET":
            self.pause.wait()
            part = body[: self.cuts.pop(0)] if self.cuts and "ETag" in headers and len(body) > 1 else body
            try:
                request.wfile.write(part)
                sent = len(part)
            except ConnectionError:
                pass  # a client that only wanted the headers
        request.close_connection = True
        self.seen.append(Seen(request.command, request.path, request.headers.get("Range"), status, sent))
