"""What can happen to a file on disk."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

Damaging = Callable[[Path, Path, random.Random], None]
"""Damages a file, given the file of the same name of another run."""


def half(path: Path, other: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def zero(path: Path, other: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def random_bytes(path: Path, other: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(path.stat().st_size))


def deleted(path: Path, other: Path, rng: random.Random) -> None:
    path.unlink()


def one_bit(path: Path, other: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def of_another_run(path: Path, other: Path, rng: random.Random) -> None:
    if other.exists():
        shutil.copyfile(other, path)


DAMAGES: dict[str, Damaging] = {
    "half": half,
    "zero": zero,
    "random": random_bytes,
    "deleted": deleted,
    "one bit": one_bit,
    "another run": of_another_run,
}


def damage(name: str, path: Path, other: Path, seed: int = 0) -> bool:
    """Damages the file; returns whether its content has changed."""
    before = path.read_bytes()
    if before:
        DAMAGES[name](path, other, random.Random(f"{seed} {name} {path.name}"))
    return not path.exists() or path.read_bytes() != before
