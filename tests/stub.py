"""A local HTTP server that answers what a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """`pause`: seconds before each byte of the body."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Stub:
    """`reply(body, number)` answers the request with this JSON body, the number-th one from 0 on."""

    reply: Callable[[Any, int], Reply]
    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: Any, headers: dict[str, str]) -> Reply:
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self.reply(body, number)
        finally:
            with self.lock:
                self.at_once -= 1


@contextmanager
def serving(reply: Callable[[Any, int], Reply], port: int = 0) -> Iterator[Stub]:
    """Port 0 is any free one."""
    stub = Stub(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = stub.answer(body, headers | {"path": self.path})
            self.send_response(reply.status)
            content = {"content-type": "application/json", "content-length": str(len(reply.content))}
            for name, value in (content | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.write(reply)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def write(self, reply: Reply) -> None:
            if not reply.pause:
                self.wfile.write(reply.content)
                return
            for byte in reply.content:
                time.sleep(reply.pause)
                self.wfile.write(bytes([byte]))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()


def completion(text: str | None, finish: str = "stop") -> dict[str, Any]:
    """A chat completion as OpenAI-compatible servers send it."""
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105},
    }  # fmt: skip


def by_length(body: Any, number: int) -> Reply:
    """A judge that prefers the longer answer."""
    question = body["messages"][0]["content"]
    if "<answer_a>" not in question:
        return Reply(completion("[[A]]"))
    first, second = (
        question.split(f"<answer_{name}>\n")[1].split(f"\n</answer_{name}>")[0] for name in ("a", "b")
    )  # fmt: skip
    verdict = "C" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return Reply(completion(f"They differ in length. [[{verdict}]]"))
