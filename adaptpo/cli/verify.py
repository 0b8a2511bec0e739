"""`adaptpo verify` and `adaptpo repair`: what a run wrote, compared with what is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from adaptpo.errors import RunError
from adaptpo.run.damage import (
    Damage,
    Decision,
    apply,
    decide,
    find_damage,
    heal_manifest,
    unlisted_records,
    write_empty_state,
)
from adaptpo.run.directory import RunDirectory, open_run
from adaptpo.run.manifest import Digest


@dataclass(frozen=True)
class Checked:
    """An artefact, or a file of the run itself, and what is wrong with it."""

    name: str
    phase: str
    size: Digest | None
    faults: list[str]

    def row(self) -> str:
        found = "damaged" if self.faults else "ok"
        counts = "" if self.size is None else f"  {self.size.files} files, {self.size.size:,} bytes"
        rows = "" if self.size is None or self.size.rows is None else f", {self.size.rows:,} rows"
        return f"{found:8} {self.name}{counts}{rows}" + "".join(f"\n         {fault}" for fault in self.faults)

    def as_json(self) -> dict[str, object]:
        size = {} if self.size is None else asdict(self.size)
        return {"artefact": self.name, "phase": self.phase, **size, "faults": self.faults}


@contextmanager
def opened(path: Path) -> Iterator[RunDirectory]:
    """The run in a folder, locked. Raises RunError if there is none."""
    if not any((path / name).exists() for name in ("config.yaml", "state.json", "manifest.jsonl")):
        raise RunError(f"{path} holds no run; give the folder that `adaptpo train` wrote (the recipe's output_dir)")
    with open_run(path) as run:
        run.manifest.refresh()
        yield run


def verify(path: Path) -> list[Checked]:
    """Reads everything that the run in a folder wrote. Raises RunError if its state is damaged."""
    with opened(path) as run:
        damage = [*find_damage(run), *unlisted_records(run)]
        return [*own_files(run, damage), *artefacts(run, damage)]


def own_files(run: RunDirectory, damage: list[Damage]) -> Iterator[Checked]:
    state = run.state
    fault = run.config_fault()
    yield Checked("config.yaml", "", None, [] if fault is None else [fault])
    yield Checked("state.json", "", None, [])
    lines = [f"line {number} is damaged" for number in run.manifest.damaged_lines]
    lost = {"metrics.jsonl": [f"{fault} (found before)" for fault in state.get("lost", ())]}
    for name in ("manifest.jsonl", "metrics.jsonl", "dropped.jsonl"):
        faults = [one.fault for one in damage if one.file == name]
        yield Checked(name, "", None, [*(lines if name == "manifest.jsonl" else []), *faults, *lost.get(name, [])])


def artefacts(run: RunDirectory, damage: list[Damage]) -> Iterator[Checked]:
    for phase, facts in run.state["phases"].items():
        for artefact, digest in facts.get("artefacts", {}).items() if facts["done"] else ():
            faults = [f"{one.file} {one.fault}" for one in damage if one.artefact == artefact]
            yield Checked(artefact, phase, Digest(**digest), faults)
        if facts["done"] and "artefacts" not in facts:
            yield Checked(f"{phase}: written by a version without checksums, not checked", phase, None, [])
    for one in damage:
        if one.artefact is not None and one.phase not in run.state["phases"]:
            yield Checked(one.artefact, one.phase, None, [f"{one.file} {one.fault}"])


def repair(path: Path, applies: bool) -> tuple[list[Damage], Decision]:
    """What is damaged and what has to be made again; with `applies`, removes it. Raises RunError for a damaged state
    that is to stay."""
    if applies:
        write_empty_state_if_damaged(path)
    with opened(path) as run:
        if applies:
            heal_manifest(run)
        damage = find_damage(run)
        decision = decide(run.state["phases"], damage, bool(run.state.get("repeatable")))
        if applies:
            apply(run, damage, decision)
    return damage, decision


def write_empty_state_if_damaged(path: Path) -> None:
    try:
        with opened(path) as run:
            _ = run.state
    except RunError:
        with opened(path) as run:
            write_empty_state(run)
        print(f"{path / 'state.json'} was damaged and is empty now: the next start goes through all phases again")


def print_verified(path: Path, as_json: bool) -> bool:
    """Prints the result of `verify`; returns whether nothing is damaged."""
    import json

    checked = verify(path)
    if as_json:
        print(json.dumps([one.as_json() for one in checked], indent=1))
    else:
        print("\n".join(one.row() for one in checked))
    damaged = sum(bool(one.faults) for one in checked)
    if not as_json:
        print(f"{damaged} of {len(checked)} are damaged: adaptpo repair {path}" if damaged else "Nothing is damaged.")
    return not damaged


def print_repaired(path: Path, applies: bool) -> None:
    damage, decision = repair(path, applies)
    if not damage and not decision.after:
        print("Nothing is damaged.")
        return
    for one in damage:
        left = " (no phase reads it; it stays as it is)" if one in decision.left else ""
        print(f"{one.file} {one.fault}{left}")
    again = [*decision.again, *decision.after]
    if not again:
        return
    names = ", ".join(again)
    print(f"removed: what {names} wrote; `adaptpo train` makes it again" if applies else f"to be made again: {names}")
    if not applies:
        print(f"adaptpo repair {path} --apply removes what has to be made again, and nothing else")
