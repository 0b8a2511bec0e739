"""Content hashes of a run's input data, by which a resumed run detects changed data."""

from __future__ import annotations

import hashlib
import json
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import datasets

from adaptpo.data.source import LOAD_ERRORS, DataSource, open_rows

MIB = 2**20
WHOLE_FILE_LIMIT = 256 * MIB
SAMPLED_BLOCKS = 16


def fingerprint(source: DataSource, split: str = "train", name: str | None = None) -> dict[str, str]:
    """Returns the name of every input with the hash of its content.

    Files of up to 256 MiB are hashed whole (`sha256:`), larger ones by their size and 16 evenly spaced blocks of 1 MiB
    (`sampled-sha256:`). A change between the blocks that preserves the size is not detected. A folder has one entry per
    file, an object in memory one for all its rows, a hub id the hash of the revision that `datasets` reports. Split and
    configuration are part of the names of hub ids and objects.

    Raises:
        DataError: an object in memory has no such split.
    """
    if not isinstance(source, str | PathLike):
        return {f"rows in memory ({split})": _rows_hash(source, split)}
    path = Path(source).expanduser()
    if path.is_file():
        return {str(source): _file_hash(path)}
    if path.is_dir():
        return {f"{source}/{file.relative_to(path).as_posix()}": _file_hash(file) for file in _folder_files(path)}
    return {f"{source} ({name or 'default'}, {split})": _hub_revision(str(source), name)}


def _folder_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and not _is_by_product(file.relative_to(folder)))


def _is_by_product(file: Path) -> bool:
    # `datasets` writes cache-*.arrow beside saved data when it is mapped; downloads leave hidden folders.
    is_hidden = any(part.startswith(".") for part in file.parts)
    return is_hidden or (file.name.startswith("cache-") and file.suffix == ".arrow")


def _file_hash(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_FILE_LIMIT:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        return f"sampled-sha256:{_sampled_digest(file, size)}"


def _sampled_digest(file: BinaryIO, size: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    for block in range(SAMPLED_BLOCKS):
        file.seek((size - MIB) * block // (SAMPLED_BLOCKS - 1))
        digest.update(file.read(MIB))
    return digest.hexdigest()


def _rows_hash(source: DataSource, split: str) -> str:
    digest = hashlib.sha256()
    for row in open_rows(source, split):
        digest.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def _hub_revision(source: str, name: str | None) -> str:
    try:
        return f"revision:{datasets.load_dataset_builder(source, name).hash}"
    except LOAD_ERRORS:
        return "revision:unknown"
