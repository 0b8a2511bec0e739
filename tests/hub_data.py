"""A local HTTP server that stands in for the hub's data sets: what `datasets` asks for when it loads or streams one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants

REVISION = "1" * 40
ADDRESS = "{repo_id}/resolve/{revision}/{filename}"


@dataclass
class DataHub:
    """`files`: by path, those of the only data set, `name`. `read`: the ranges of them that were sent, None for all."""

    name: str
    files: dict[str, bytes]
    url: str = ""
    read: list[tuple[str, str | None]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: DataHub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, name = self.path.split("?")[0], self.hub.name
        if path.startswith(f"/api/datasets/{name}/tree/"):
            return self.answer(200, json.dumps(self.listed("/".join(path.split("/")[7:]))).encode())
        if path.startswith(f"/api/datasets/{name}"):
            found = {"id": name, "sha": REVISION, "siblings": [{"rfilename": file} for file in self.hub.files]}
            return self.answer(200, json.dumps(found).encode())
        if path.startswith(f"/datasets/{name}/resolve/"):
            return self.send("/".join(path.split("/")[6:]))
        return self.answer(404)

    def listed(self, below: str) -> list[dict[str, Any]]:
        files = {path: content for path, content in self.hub.files.items() if path.rpartition("/")[0] == below}
        folders = {path.partition("/")[0] for path in self.hub.files if "/" in path} if not below else set()
        return [
            *({"type": "file", "path": path, "size": len(file), "oid": etag(file)} for path, file in files.items()),
            *({"type": "directory", "path": path, "oid": "0" * 40} for path in folders),
        ]

    def send(self, path: str) -> None:
        if path not in self.hub.files:
            return self.answer(404, X_Error_Code="EntryNotFound")
        content, asked = self.hub.files[path], self.headers.get("Range")
        headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.hub.read.append((path, asked))
        if asked is None:
            return self.answer(200, content, **headers)
        first, last = asked.removeprefix("bytes=").split("-")
        begin, end = int(first), min(int(last or len(content)), len(content) - 1) + 1
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        return self.answer(206, content[begin:end], **headers)


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving_data(hub: DataHub, cache: Path) -> Iterator[DataHub]:
    """Lets `datasets` find this hub, with a cache of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", hub.url)
            patch.setattr(
                constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
            )
            patch.setattr(constants, "HF_HUB_OFFLINE", False)
            patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
            patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
            patch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
            yield hub
    finally:
        server.shutdown()
        server.server_close()
