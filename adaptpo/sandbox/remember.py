"""Trains models that several worlds share only once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adaptpo.run.files import whole_folder


def remember(cache: Path | None, folder: Path, ingredients: Any, make: Callable[[Path], object]) -> None:
    """Writes `folder` with `make`, or copies it from `cache` if the same ingredients (JSON) made it before."""
    if cache is None:
        make(folder)
        return
    kept = cache / hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:16]
    with locked(kept.with_suffix(".lock")):
        if not kept.exists():
            make(kept)
    with whole_folder(folder) as copy:
        shutil.copytree(kept, copy, dirs_exist_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Admits one process at a time; the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
