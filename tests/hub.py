"""A local HTTP server that stands in for the hub: the requests of huggingface_hub's client when a folder is pushed."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS = {"hf_writer": "write", "hf_reader": "read"}
USER = "ann"


@dataclass
class Hub:
    """`repositories`: by full name, whether it is private. `files`: by repository, the content of each file pushed."""

    url: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    down: bool = False
    """Whether it refuses to take files."""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    objects: dict[str, bytes]

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, content: Any = None, **headers: str) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Type": "application/json", "Content-Length": str(len(body))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    @property
    def role(self) -> str | None:
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        self.hub.requests.append(f"GET {self.path}")
        if self.role is None:
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path.startswith("/api/whoami"):
            return self.answer(200, {"name": USER, "auth": {"accessToken": {"role": self.role}}})
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        if name not in self.hub.repositories:
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if "/auth-check/write" in self.path:
            allowed = self.role == "write" and name.startswith(f"{USER}/")
            return self.answer(200 if allowed else 403, None if allowed else {"error": "You have no write permission"})
        if "/tree/" in self.path:
            files = self.hub.files.get(name, {}).items()
            return self.answer(200, [{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in files])
        private = self.hub.repositories[name]
        return self.answer(200, {"id": name, "sha": "0" * 40, "private": private, "siblings": []})

    def do_POST(self) -> None:
        self.hub.requests.append(f"POST {self.path}")
        body = self.read()
        if self.role is None:
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.hub.down:
            return self.answer(400, {"error": "no room left"})
        if "/preupload/" in self.path:
            return self.answer(200, {"files": [self.upload_mode(file) for file in json.loads(body)["files"]]})
        if self.path.endswith("/info/lfs/objects/batch"):
            return self.answer(200, {"objects": [self.place(given) for given in json.loads(body)["objects"]]})
        if "/commit/" in self.path:
            return self.commit("/".join(self.path.split("/")[3:5]), body)
        return self.answer(404, {"error": f"unknown path {self.path}"})

    def do_PUT(self) -> None:
        self.objects[self.path.rsplit("/", 1)[-1]] = self.read()
        self.answer(200)

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        if self.role != "write" or not name.startswith(f"{USER}/"):
            return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        self.hub.repositories[name] = wanted.get("visibility") == "private"
        return self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def upload_mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors")
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def place(self, given: dict[str, Any]) -> dict[str, Any]:
        return given | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{given['oid']}", "header": {}}}}

    def commit(self, name: str, body: bytes) -> None:
        files = self.hub.files.setdefault(name, {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
        url = f"{self.hub.url}/{name}/commit/{'1' * 40}"
        self.answer(200, {"commitOid": "1" * 40, "commitUrl": url})


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("OfThisHub", (Handler,), {"hub": hub, "objects": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
