"""Runs that share their opening: everything before the first iteration, above all the warm-up.

The opening depends on model, data, objective, filter and settings, but not on selection, pairing and weighting, which
are used later. A comparison of methods needs it only once.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from adaptpo.errors import RunError
from adaptpo.run.directory import RunDirectory
from adaptpo.run.files import JsonLines, whole_file, whole_folder
from adaptpo.run.identity import differences, flatten, is_compared, plain, stored_config
from adaptpo.run.lazy_sequence import batched
from adaptpo.run.left_out import WRITTEN_TOGETHER
from adaptpo.run.manifest import Manifest
from adaptpo.run.state import log_digests, read_state, write_state

LATER_SETTINGS = frozenset({"reference", "generation.num_generations", "warmup_epochs"})
LATER_SECTIONS = ("meta.", "method.", "stage.", "reference.")
DATABASE = ".sqlite"
OWN_FILES = frozenset(
    {
        "config.yaml",
        "state.json",
        "metrics.jsonl",
        "dropped.jsonl",
        "manifest.jsonl",
        "repairs.jsonl",
        "lock",
        "inputs",
        "snapshots",
        "iterations",
        "final",
        "trackers.json",
        "tensorboard",
        "report",
        "served",
        "servers",
    }
)


def opening_facts(config: dict[str, Any], prompts_alone: bool = False) -> dict[str, Any]:
    """The settings that the opening of a run with this resolved config depends on. `prompts_alone`: whether the data
    has prompts without a pair, which only some methods take."""
    settings = {
        key: value
        for key, value in flatten(plain(config)).items()
        if is_compared(key) and key not in LATER_SETTINGS and not key.startswith(LATER_SECTIONS)
    }
    own, method = config["warmup_epochs"], config["method"]
    epochs = method["warmup_epochs"] if own is None else own
    of_method = {name: value for name, value in method["opening"].items() if prompts_alone or name != "takes_prompts"}
    return settings | {"warmup_epochs": epochs} | flatten(plain(of_method), "method")


def take_opening(run: RunDirectory, source: Path, config: dict[str, Any]) -> None:
    """Copies the opening of the run in `source`, unless this run has begun.

    Raises RunError if `source` holds no run that has finished its opening, or one with a different opening.
    """
    if any(facts["done"] for facts in run.state["phases"].values()):
        return
    state = opened_state(source, config)
    saved = {path.name for path in (source / "final").glob("*")}  # `save_model` may have copied it into the run.
    for path in sorted(source.iterdir()):
        if path.name not in OWN_FILES | saved and not path.name.startswith((".", "final-damaged")):
            copy(path, run.path / path.name)
    for name in ("metrics.jsonl", "dropped.jsonl"):
        (run.path / name).unlink(missing_ok=True)
        records = JsonLines(source / name).records()
        for piece in batched((record for record in records if in_opening(record["phase"])), WRITTEN_TOGETHER):
            JsonLines(run.path / name).append(*piece)
    take_manifest(run, source, state)
    state["logs"] = {log.path.name: log_digests(log.path) for log in (run.metrics, run.dropped)}
    write_state(run.path, run.state | state)


def take_manifest(run: RunDirectory, source: Path, state: dict[str, Any]) -> None:
    """Lists what was copied as the source lists it, so that damage there, or done by copying, is found when it is read
    here."""
    taken = Manifest(source)
    taken.refresh()
    listed = (entry for files in taken.artefacts.values() for entry in files.values())
    run.manifest.refresh()
    run.manifest.append([entry for entry in listed if entry.phase in state["phases"]])


def opened_state(source: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The phases of the source's opening, checked to match the one that this config needs."""
    if not (source / "config.yaml").is_file():
        raise RunError(f"branch_of: no run at {source}; give the folder of a run (an output_dir)")
    stored = stored_config(source)
    state = read_state(source)
    data = state["phases"].get("data", {})
    alone = any(name in data for name in ("prompts_alone", "prompts_alone_left_out"))
    if lines := differences(opening_facts(stored, alone), opening_facts(config, alone)):
        raise RunError(
            f"branch_of: the run in {source} started with different settings:\n{lines}\n"
            "Use that run's settings, or remove branch_of."
        )
    if not state.get("opened"):
        raise RunError(f"branch_of: the run in {source} has not reached its first iteration; resume it first")
    phases = {name: facts for name, facts in state["phases"].items() if in_opening(name)}
    return {"phases": phases, "opened": True}


def in_opening(phase: str) -> bool:
    return (
        phase != "final"
        and not phase.startswith("push/")
        and not phase.startswith(("iterations/", "evaluate/iteration-", "evaluate-on/"))
    )


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        with whole_folder(target) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True, ignore=not_copied, copy_function=copy_file)
    else:
        with whole_file(target) as temporary:
            shutil.copyfile(source, temporary)


def not_copied(_: str, names: list[str]) -> set[str]:
    """Files of iterations, and those that SQLite keeps beside an open database."""
    beside = (f"{DATABASE}-wal", f"{DATABASE}-shm")
    return {name for name in names if name.startswith("iteration-") or name.endswith(beside)}


def copy_file(source: str, target: str) -> str:
    """Copies a file; a database as it is at one moment, because the run that owns it may be writing."""
    if not source.endswith(DATABASE):
        return shutil.copy2(source, target)
    if not os.access(Path(source).parent, os.W_OK):  # Nobody writes it, and SQLite could not open it.
        return shutil.copy2(source, target)
    try:
        with closing(sqlite3.connect(source)) as given, closing(sqlite3.connect(target)) as taken:
            given.backup(taken)
    except sqlite3.Error as error:
        raise RunError(f"branch_of: {source} cannot be copied ({error}); see `adaptpo verify` of its run") from error
    return target
