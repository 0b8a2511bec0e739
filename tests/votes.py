"""Two files of responses, and a voting server in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tiny import write_jsonl

CHAT = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "An assistant."},
    {"role": "user", "content": "And who made you?"},
]
SCRIPT = (
    "<script>document.title = 'stolen'</script><img src=x onerror=\"document.title='stolen'\"> <b>bold</b> {{ 7*7 }}"
)


def prompt(number: int) -> Any:
    return CHAT if number == 1 else f"What is {number} & <{number}>?"


def answer(run: str, number: int) -> str:
    """`zebra` and `yak` mark the two sides for the tests alone."""
    kinds = {0: SCRIPT, 1: "I am ChatGPT, trained by OpenAI."}
    return f"{run} {number}: {kinds.get(number % 5, 'It is a number. ' * (number % 3 + 1))}"


def write_sides(folder: Path, prompts: int = 12) -> list[Path]:
    """The files of run A (`zebra`) and run B (`yak`)."""
    paths = [folder / "first-run.jsonl", folder / "second-run.jsonl"]
    for path, run in zip(paths, ("zebra", "yak"), strict=True):
        write_jsonl(path, [{"prompt": prompt(n), "response": answer(run, n)} for n in range(prompts)])
    return paths


@dataclass
class Server:
    """A running `adaptpo vote`."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.split(":")[2].split("/")[0])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def voting(paths: Sequence[Path], out: Path, *options: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "adaptpo", "vote", *map(str, paths), "--out", str(out), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield Server(process, announced(process))
    finally:
        process.kill()
        process.wait()


def announced(process: subprocess.Popen[str]) -> str:
    """The link that the server prints; its socket is bound by then, so that a connection waits for the server."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"Vote at (\S+)", line):
            return found.group(1)
    raise AssertionError("".join(lines))
