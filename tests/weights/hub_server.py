"""A server on the loopback that answers the Hugging Face hub's client, for the calls that up- and download a model."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator

TOKEN = "hf_writer"
READER = "hf_reader"
REJECTED = "Invalid credentials in Authorization header"
"""What the hub says of a token that it does not know."""
LARGE = 4000
"""Bytes; larger files are uploaded by Git LFS's protocol."""


class Hub:
    """Repositories in memory: every branch has its files, and every commit can be read by its id."""

    def __init__(self):
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        """The files by repository, revision and path."""
        self.gated: set[str] = set()
        self.broken = False
        """Whether every request fails."""
        self.large: dict[str, bytes] = {}
        self.created: list[dict] = []
        self.messages: list[str] = []
        self.commits: dict[str, str] = {}
        self.downloads: list[str] = []
        self.address = ""

    def add(self, repository: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Makes a commit with exactly these files, and returns its id."""
        state = json.dumps(sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items()))
        commit = hashlib.sha1(f"{repository} {revision} {len(self.commits)} {state}".encode()).hexdigest()
        revisions = self.repositories.setdefault(repository, {})
        revisions[revision] = revisions[commit] = dict(files)
        self.commits[f"{repository}@{revision}"] = self.commits[f"{repository}@{commit}"] = commit
        return commit


@contextlib.contextmanager
def running(hub: Hub) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path = self._start()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/(?:revision|tree)/([^/]+))?", path):
            self._describe(found[1], urllib.parse.unquote(found[3] or "main"), tree="/tree/" in path)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._send_file(found[1], urllib.parse.unquote(found[2]), urllib.parse.unquote(found[3]))
        else:
            self._fail(404)

    do_HEAD = do_GET

    def do_PUT(self):
        path = self._start()
        self.hub.large[path.removeprefix("/large/")] = self.body
        self._send({})

    def do_POST(self):
        path, hub = self._start(), self.hub
        if path == "/api/validate-yaml":
            card = json.loads(self.body)["content"]
            if 'license: "apache-2.0"' in card:
                return self._send({})
            return self._send({"errors": [{"message": "no such license"}]}, 400)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._fail(403 if self.headers.get("Authorization") == f"Bearer {READER}" else 401, message=REJECTED)
        if path == "/api/repos/create":
            asked = json.loads(self.body)
            repository = f"{asked['organization']}/{asked['name']}"
            new = repository not in hub.repositories
            if new:
                hub.created.append(asked)
                hub.add(repository, {".gitattributes": b""})
            return self._send({"url": f"{hub.address}/{repository}"}, 200 if new else 409)
        if found := re.fullmatch(r"/([^/]+/[^/]+).git/info/lfs/objects/batch", path):
            objects = json.loads(self.body)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{hub.address}/large/{each['oid']}"}}
            return self._send({"transfer": "basic", "objects": objects})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/([^/]+)", path)
        if not found:
            return self._fail(404)
        repository, revision = found[1], urllib.parse.unquote(found[3])
        revisions = hub.repositories[repository]
        if found[2] == "branch":
            if revision in revisions:
                return self._fail(409)
            hub.add(repository, revisions["main"], revision)
            return self._send({})
        if found[2] == "preupload":
            files = [
                {
                    "path": file["path"],
                    "shouldIgnore": False,
                    "uploadMode": "lfs" if file["size"] > LARGE else "regular",
                }
                for file in json.loads(self.body)["files"]
            ]
            return self._send({"files": files})
        files = dict(revisions[revision])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    hub.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = hub.add(repository, files, revision)
        self._send({"commitUrl": f"{hub.address}/{repository}/commit/{commit}", "commitOid": commit})

    def _start(self) -> str:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return urllib.parse.urlsplit(self.path).path

    def _files(self, repository: str, revision: str) -> dict[str, bytes] | None:
        if self.hub.broken:
            return self._fail(503)
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}", f"Bearer {READER}"):
            return self._fail(401, message=REJECTED)
        if repository in self.hub.gated:
            return self._fail(403, "GatedRepo")
        if repository not in self.hub.repositories:
            return self._fail(401, "RepoNotFound")
        if revision not in self.hub.repositories[repository]:
            return self._fail(404, "RevisionNotFound")
        return self.hub.repositories[repository][revision]

    def _describe(self, repository: str, revision: str, *, tree: bool) -> None:
        files = self._files(repository, revision)
        if files is None:
            return
        if tree:
            self._send([self._entry(path, data) for path, data in files.items()])
        else:
            siblings = [{"rfilename": path} for path in files]
            commit = self.hub.commits[f"{repository}@{revision}"]
            self._send({"id": repository, "sha": commit, "siblings": siblings})

    def _entry(self, path: str, data: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if len(data) > LARGE:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _send_file(self, repository: str, revision: str, path: str) -> None:
        files = self._files(repository, revision)
        if files is None:
            return
        if path not in files:
            return self._fail(404, "EntryNotFound")
        data = files[path]
        if self.command == "GET":
            self.hub.downloads.append(path)
        digest = (hashlib.sha256 if len(data) > LARGE else hashlib.sha1)(data).hexdigest()
        commit = self.hub.commits[f"{repository}@{revision}"]
        self._respond(200, data, {"ETag": f'"{digest}"', "X-Repo-Commit": commit})

    def _send(self, answer, status: int = 200) -> None:
        self._respond(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str | None = None, message: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._respond(status, b'{"error": "refused"}', {name: value for name, value in headers.items() if value})

    def _respond(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
