"""Damage in a run directory: how it is found, and the one place that decides what follows from it.

A phase is made again if that gives the same result: always if no finished phase has read what it wrote, else if the run
is repeatable bit for bit. What was made again is compared with the checksums of what was damaged. Otherwise the run
stops, and names the phases whose results have to go.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adaptpo.errors import RunError
from adaptpo.run.checked_files import RECORDS
from adaptpo.run.directory import RunDirectory
from adaptpo.run.manifest import Digest, checksum
from adaptpo.run.state import State, dependents, is_done, is_read_no_more, log_faults, write_state

SHARD = re.compile(r"\d{5,}\.parquet")
SAME_ANYWHERE = frozenset({"data"})
"""Phases that compute nothing that depends on the machine."""
METHOD_STATE = "method.pt"
"""What every start reads of all checkpoints."""
METRICS = "metrics.jsonl"
READ_BY_NO_PHASE = (METRICS, "pair_weights.jsonl")


@dataclass(frozen=True)
class Damage:
    """What is wrong with a file below the run's folder. `phase` wrote it; `artefact` is what it belongs to, None for
    records of a log."""

    file: str
    fault: str
    phase: str
    artefact: str | None = None


@dataclass(frozen=True)
class Decision:
    """`again`: phases to be made again. `after`: phases whose results have to go as well, because what they read can
    not be had again. `left`: damage in what no phase reads any more, or in metrics."""

    again: list[str]
    after: list[str]
    left: list[Damage]


def find_damage(run: RunDirectory) -> list[Damage]:
    """Compares the files of finished phases with what was written."""
    done = {name for name, facts in run.state["phases"].items() if facts["done"]}
    listed = [entry for files in run.manifest.artefacts.values() for entry in files.values() if entry.phase in done]
    files = [Damage(entry.file, fault, entry.phase, entry.artefact) for entry, fault in run.manifest.faults(listed)]
    return [*unlisted(run), *files, *damaged_logs(run)]


def is_loaded_no_more(one: Damage, phases: State) -> bool:
    """Whether this is part of a policy that the next iteration has been trained from."""
    found = re.fullmatch(r"iterations/(\d+)/train", one.phase)
    trained_from = found is not None and is_done(f"iterations/{int(found[1]) + 1}/train", phases)
    return trained_from and not one.file.endswith(METHOD_STATE)


def unlisted(run: RunDirectory) -> Iterator[Damage]:
    """Artefacts whose list in the manifest is not the one that the phase ended with."""
    for phase, facts in run.state["phases"].items():
        found = run.manifest.of_phase(phase)
        for artefact, recorded in facts.get("artefacts", {}).items() if facts["done"] else ():
            if artefact not in found or asdict(found[artefact]) != recorded:
                fault = f"lists other files of {artefact} than {phase} wrote"
                yield Damage(run.manifest.log.path.name, fault, phase, artefact)


def damaged_logs(run: RunDirectory) -> Iterator[Damage]:
    state = run.state
    for name, recorded in state.get("logs", {}).items():
        owned = {phase: found for phase, found in recorded.items() if is_settled(phase, state["phases"])}
        for phase, fault in log_faults(run.path / name, owned).items():
            yield Damage(name, fault, owner(phase, state["phases"]))


def owner(logged: str, phases: State) -> str:
    """The phase that logs under this name."""
    if logged == "eval_data":
        return "evaluate/initial"
    name = logged.replace("annotate/", "evaluate/", 1) if logged.startswith("annotate/") else logged
    return next((phase for phase in phases if name == phase or name.startswith(f"{phase}/")), "")


def is_settled(logged: str, phases: State) -> bool:
    """Whether no phase that is under way may write records under this name again."""
    if logged == "eval_data":
        return all(facts["done"] for phase, facts in phases.items() if phase.startswith("evaluate/"))
    return bool(phases.get(owner(logged, phases), {}).get("done"))


def decide(phases: State, damage: Sequence[Damage], repeatable: bool) -> Decision:
    left = [one for one in damage if one.file.endswith(READ_BY_NO_PHASE)]
    damaged = {one.phase for one in damage if one not in left}
    again: list[str] = []
    after = {name for facts in phases.values() for name in facts.get("changed", ())}
    for phase in (name for name in phases if name in damaged):
        same = repeatable or phase in SAME_ANYWHERE or not dependents(phase, phases)
        found = [one for one in damage if one.phase == phase and one not in left]
        if not same and (is_read_no_more(phase, phases) or all(is_loaded_no_more(one, phases) for one in found)):
            left += found
            continue
        again.append(phase)
        after |= set() if same else set(dependents(phase, phases))
    return Decision([phase for phase in again if phase not in after], [p for p in phases if p in after], left)


def mend(run: RunDirectory, repeatable: bool) -> None:
    """Checks the run before its phases continue, and sees to it that no damaged file is used. Rank 0 calls it.

    Raises RunError if damage cannot be undone without losing what was computed from it.
    """
    run.manifest.refresh()
    if run.state.get("repeatable") != repeatable:
        write_state(run.path, run.state | {"repeatable": repeatable})
    if run.is_older_than_manifests:
        run.tell("manifest.jsonl", "does not list what an older version of adaptpo wrote", "that is used unchecked")
    heal_manifest(run)
    damage = find_damage(run)
    decision = decide(run.state["phases"], damage, repeatable)
    if decision.after:
        raise RunError(refusal(run, damage, decision))
    for one in decision.left:
        run.tell(one.file, one.fault, "no phase reads it; the run continues without it")
    for one in (one for one in damage if one.phase in decision.again and one not in decision.left):
        run.tell(one.file, one.fault, f"{one.phase} is made again")
    for one in unlisted_records(run):
        run.tell(one.file, one.fault, "written again")
    apply(run, damage, decision)


def refusal(run: RunDirectory, damage: Sequence[Damage], decision: Decision) -> str:
    lines = "\n".join(f"  {one.file} {one.fault}" for one in damage[:12])
    more = "\n  ..." if len(damage) > 12 else ""
    return (
        f"{run.path} is damaged, and on this machine the same result cannot be had again:\n{lines}{more}\n"
        f"Restore the files, or let `adaptpo repair {run.path} --apply` remove what was computed from them "
        f"({', '.join([*decision.again, *decision.after])}); the next start makes it again"
    )


def unlisted_records(run: RunDirectory) -> Iterator[Damage]:
    """Damage in files that are written between phases, of which only the report reads any. A start writes them again,
    that of a finished run too."""
    listed = [entry for files in run.manifest.artefacts.values() for entry in files.values() if entry.phase == RECORDS]
    for entry, fault in run.manifest.faults(listed):
        if "/scratch/" not in entry.file:
            yield Damage(entry.file, fault, entry.phase, entry.artefact)


def write_empty_state(run: RunDirectory) -> None:
    """Replaces a damaged `state.json` by that of a run whose phases have all to be gone through again."""
    config = {"config": checksum(run.config_path)} if run.config_path.exists() else {}
    write_state(run.path, {"phases": {}, **config})


def heal_manifest(run: RunDirectory) -> None:
    """Lists an artefact again whose files are those that its phase recorded, and leaves out damaged lines."""
    for one in list(unlisted(run)):
        assert one.artefact is not None
        entries = run.manifest.on_disk(one.artefact, one.phase)
        if asdict(Digest.of(entries)) == run.state["phases"][one.phase]["artefacts"][one.artefact]:
            run.manifest.remove(e.file for e in run.manifest.below(one.artefact))
            run.manifest.append(entries)
            run.tell(one.file, one.fault, "listed again: the files are the right ones")
    if run.manifest.damaged_lines:
        run.manifest.rewrite()


def apply(run: RunDirectory, damage: Sequence[Damage], decision: Decision) -> None:
    """Removes what has to be made again, so that the next start makes it."""
    state = run.state
    for phase in decision.after:
        remove_phase(run, phase)
        state["phases"][phase] = {"done": False, "attempts": state["phases"][phase].get("attempts", 0)}
    for facts in state["phases"].values():
        facts.pop("changed", None)
    for phase in decision.again:
        for one in damage:
            if one.phase == phase and one.artefact is not None and one not in decision.left:
                remove(run, one)
        facts = state["phases"][phase]
        was = {"was": facts["artefacts"]} if "artefacts" in facts else {}
        state["phases"][phase] = {"done": False, "attempts": facts.get("attempts", 0)} | was
        forget_snapshot(run, phase)
    salvage(run, state, decision)
    if decision.again or decision.after:
        state.pop("opened", None)
    if state != run.state:
        write_state(run.path, state)


def salvage(run: RunDirectory, state: State, decision: Decision) -> None:
    """Removes damaged records from logs that were damaged, and takes what is left for granted."""
    for log in (run.metrics, run.dropped):
        if lost := log.salvage():
            run.tell(log.path.name, f"holds {lost} damaged records", "removed")
    lost_records = {one.fault for one in decision.left if one.file == METRICS}
    if lost_records:
        state["lost"] = sorted({*state.get("lost", ()), *lost_records})
        state["logs"][METRICS] = {}


def remove(run: RunDirectory, one: Damage) -> None:
    """Removes a damaged shard, or the whole of another artefact."""
    assert one.artefact is not None
    if SHARD.fullmatch(Path(one.file).name):
        (run.path / one.file).unlink(missing_ok=True)
        run.manifest.remove([one.file])
    else:
        remove_artefact(run, one.artefact)


def remove_artefact(run: RunDirectory, artefact: str) -> None:
    path = run.path / artefact
    if artefact == "final" and path.exists():  # It may hold what the user has put there.
        path.replace(free_name(path.with_name("final-damaged")))
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    run.manifest.remove(entry.file for entry in run.manifest.below(artefact))


def free_name(path: Path) -> Path:
    candidates = (path.with_name(f"{path.name}-{number}") for number in range(2, 10**6))
    return path if not path.exists() else next(name for name in candidates if not name.exists())


def remove_phase(run: RunDirectory, phase: str) -> None:
    """Removes everything that a phase wrote, and its training checkpoints."""
    for artefact in run.manifest.of_phase(phase):
        remove_artefact(run, artefact)
    folder = phase.removesuffix("/train")
    for name in ("training", "scratch"):
        shutil.rmtree(run.path / folder / name, ignore_errors=True)
    forget_snapshot(run, phase)


def forget_snapshot(run: RunDirectory, phase: str) -> None:
    if found := re.fullmatch(r"iterations/(\d+)/train", phase):
        remove_artefact(run, f"snapshots/iteration-{found[1]}.json")
