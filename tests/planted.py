"""Keys that tests plant, and the files that hold one."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

KEYS = {
    "hf": "hf_PlantedPlantedPlanted0001",
    "openai": "sk-proj-Planted_Planted-0002",
    "github": "ghp_PlantedPlantedPlanted0003",
    "aws": "AKIAPLANTEDPLANTED04",
    "google": "AIzaPlantedPlantedPlantedPlanted0005",
    "jwt": "eyJwbGFudGVkcGxhbnRlZA.eyJwbGFudGVkcGxhbnRlZA.cGxhbnRlZDAwMDY",
}
PLAIN = "correct horse battery staple 0007"
"""A key without a form: only its name says what it is."""


def files_with_keys(*folders: Path) -> dict[str, list[str]]:
    """The keys in each file of the folders that holds one, in compressed pages of Parquet files too."""
    planted = [*KEYS.values(), PLAIN]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    found = {str(path): [key for key in planted if key.encode() in content(path)] for path in files}
    return {name: keys for name, keys in found.items() if keys}


def content(path: Path) -> bytes:
    read = str(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else b""
    return path.read_bytes() + read
