"""A small local stand-in of the Hugging Face hub: the endpoints that knownot's calls reach.

It follows the paths and answers that huggingface_hub uses (repos/create, validate-yaml, preupload,
LFS batch and upload, commit, revision, tree, resolve) and keeps the files in memory. It is not the
hub: no accounts, no branches but the commit it holds, no Xet storage.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_a_token_of_the_test"


class StandIn(BaseHTTPRequestHandler):
    """One hub; `repositories` are its files, by repository and path."""

    repositories: ClassVar[dict[str, dict[str, bytes]]]
    uploads: ClassVar[dict[str, bytes]]
    asked: ClassVar[list[str]]
    protocol_version = "HTTP/1.1"

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the repository that is asked for."""
        path = self._path().removeprefix("/api/models")
        return self.repositories["/".join(path.split("/")[1:3])]

    @property
    def sha(self) -> str:
        return hashlib.sha1(b"".join(self.files.values())).hexdigest()

    def do_POST(self) -> None:
        path = self._heard()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization', 'user')}/{given['name']}"
            self.repositories.setdefault(name, {".gitattributes": b""})
            return self._json({"url": f"{self._home()}/{name}", "id": name, "name": name})
        if path == "/api/validate-yaml":
            header = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            errors = [] if isinstance(header, dict) else [{"message": "no YAML header"}]
            return self._json({"errors": errors, "warnings": []})
        if "/preupload/" in path:
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                o | {"actions": {"upload": {"href": f"{self._home()}/upload/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            self._commit([json.loads(line) for line in body.splitlines()])
            repo = path.split("/")[3:5]
            url = f"{self._home()}/{'/'.join(repo)}/commit/{self.sha}"
            return self._json({"commitUrl": url, "commitOid": self.sha, "pullRequestUrl": None})
        return self._json({"error": f"no such endpoint: POST {path}"}, 404)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(data).hexdigest() == self._heard().removeprefix("/upload/")
        self.uploads[hashlib.sha256(data).hexdigest()] = data
        self._json({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._heard()
        if re.fullmatch(r"/api/models/[\w-]+/[\w-]+(/revision/[\w.-]+)?", path):
            siblings = [{"rfilename": name} for name in self.files]
            return self._json(
                {"id": path.split("/revision")[0], "sha": self.sha, "siblings": siblings}
            )
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in self.files.items()
            ]
            return self._json(entries)
        found = re.fullmatch(r"/[\w-]+/[\w-]+/resolve/\w+/(.+)", path)
        if found and found[1] in self.files:
            return self._send(self.files[found[1]], "application/octet-stream")
        return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.uploads[value["oid"]]

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _heard(self) -> str:
        self.asked.append(f"{self.command} {self._path()}")
        return self._path()

    def _home(self) -> str:
        return f"http://{self.headers['Host']}"

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), "application/json", status, headers)

    def _send(
        self, data: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        every = {"Content-Type": kind, "Content-Length": str(len(data)), "ETag": f'"{_etag(data)}"'}
        if "/resolve/" in self._path():
            every["X-Repo-Commit"] = self.sha
        for name, value in (every | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Quiet; `asked` remembers."""


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def hub_stand_in(
    repositories: dict[str, dict[str, bytes]],
) -> Iterator[tuple[str, type[StandIn]]]:
    """A running stand-in with these files: its address, and the class that tells what was asked."""
    kind = type("Hub", (StandIn,), {"repositories": repositories, "uploads": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", kind
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
