"""`state.json`: which phases are done, what they wrote, and how the logs stood when the last one ended."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from adaptpo.errors import RunError
from adaptpo.run.files import write_text

State = dict[str, Any]
CHECK = ',\n "check": "'
"""What precedes the checksum over everything before it; it is the last key of the file."""
Recorded = Mapping[str, tuple[int, str]]
"""For each phase, the number of its records in a log, and the checksum over them."""


def read_state(folder: Path) -> State:
    """The state of the run in a folder; a run that has not begun has no phases. Raises RunError if it is damaged."""
    path = folder / "state.json"
    if not path.exists():
        return {"phases": {}}
    try:
        text = path.read_text(encoding="utf-8")
        state = json.loads(text)
        phases = state["phases"].values()
        checked = CHECK in text or any("artefacts" in facts for facts in phases)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise damaged_state(path, f"is damaged ({error})") from error
    if checked and state.pop("check", None) != check_of(text.rpartition(CHECK)[0]):
        raise damaged_state(path, "does not have the checksum that it names")
    return state


def write_state(folder: Path, state: State) -> None:
    body = json.dumps(state, indent=1, ensure_ascii=False).removesuffix("\n}")
    write_text(folder / "state.json", f'{body}{CHECK}{check_of(body)}"\n}}\n')


def check_of(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())


def damaged_state(path: Path, fault: str) -> RunError:
    return RunError(
        f"{path} {fault}; it says which phases are done. Restore it, or let `adaptpo repair {path.parent} --apply` "
        "write an empty one: the next start then goes through every phase again, and keeps the shards that are intact"
    )


def dependents(phase: str, phases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The phases that have begun and may have read what this one wrote, directly or not."""
    names = list(phases)
    later = names[names.index(phase) + 1 :]
    if phase.startswith("evaluate/"):  # The others compare themselves with the first evaluation.
        return [name for name in later if name.startswith("evaluate/")] if phase == "evaluate/initial" else []
    return later


def is_read_no_more(phase: str, phases: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether no later phase will read what this one wrote: an iteration reads itself until its training has ended."""
    folder, _, name = phase.rpartition("/")
    if phase.startswith("evaluate/"):
        return is_done("final", phases)
    return folder.startswith("iterations/") and name not in ("train", "stage") and is_done(f"{folder}/train", phases)


def is_done(phase: str, phases: Mapping[str, Mapping[str, Any]]) -> bool:
    return bool(phases.get(phase, {}).get("done"))


# Logs


def phase_of(line: bytes) -> str:
    """The phase of a record, which is its first key."""
    parts = line.split(b'"', 4)
    return parts[3].decode(errors="replace") if len(parts) == 5 and parts[1] == b"phase" else ""


def lines_of(path: Path) -> Iterator[bytes]:
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def log_digests(path: Path) -> dict[str, tuple[int, str]]:
    """For each phase, the number of its records in the log, and the checksum over them."""
    counts: Counter[str] = Counter()
    hashes: dict[str, xxhash.xxh3_64] = defaultdict(xxhash.xxh3_64)
    for line in lines_of(path):
        counts[phase_of(line)] += 1
        hashes[phase_of(line)].update(line)
    return {phase: (count, hashes[phase].hexdigest()) for phase, count in counts.items()}


def log_faults(path: Path, recorded: Recorded) -> dict[str, str]:
    """What is wrong with the records of each phase; records that were added since do not count."""
    counts: Counter[str] = Counter()
    hashes: dict[str, xxhash.xxh3_64] = defaultdict(xxhash.xxh3_64)
    for line in lines_of(path):
        phase = phase_of(line)
        if phase in recorded and counts[phase] < recorded[phase][0]:
            counts[phase] += 1
            hashes[phase].update(line)
    return dict(faults_of(counts, {phase: found.hexdigest() for phase, found in hashes.items()}, recorded))


def faults_of(counts: Mapping[str, int], hashes: Mapping[str, str], recorded: Recorded) -> Iterable[tuple[str, str]]:
    for phase, (count, digest) in recorded.items():
        found = counts.get(phase, 0)
        if found < count:
            yield phase, f"has {found} of the {count} records of {phase}"
        elif hashes.get(phase) != digest:
            yield phase, f"has other records of {phase} than were written"
