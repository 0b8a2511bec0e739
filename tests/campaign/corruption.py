"""The corruption matrix: every kind of file of a run x every damage x every moment, each resumed to the end.

    python -m tests.campaign.corruption --results corruption.jsonl

A case is a copy of a run that was killed at a moment (or has ended), with one file damaged, and started again. It ends

- `same`: as an uninterrupted run of a new interpreter, bit for bit, and nothing is left to repair;
- `refused`: with status 2 and a message that names the run's file and a remedy;
- `named`: as an uninterrupted run, but for records that no phase reads, whose loss is said and recorded;
- `unchanged`: it was not started, because the damage left the file as it was: it is empty, or the same in another run;
- `SILENT`: differently, or with damage that nobody was told of;
- `TRACEBACK`: in any other way.

`--results` keeps each case's outcome in a file; a second call goes on with the cases that are not in it, and with those
that failed. The order is such that the first cases cover every file with every damage during a phase, between phases
and after the end; the other kinds of run follow the plain one, with the files that it lacks. TMPDIR on a file system in
memory helps. Exits with status 1 if a case is silent or a traceback.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adaptpo.run.files import JsonLines
from tests.campaign.commands import train
from tests.campaign.moments import ENDED, OTHERS, PLAIN, Prepared, files, kind_of, prepare
from tests.damage import DAMAGES, damage
from tests.runs import assert_same_run


@dataclass(frozen=True)
class Case:
    moment: str
    kind: str
    file: str
    damage: str
    run: str = "plain"


@dataclass(frozen=True)
class Outcome:
    case: Case
    result: str
    detail: str


def cases(name: str, moments: dict[str, Path], rng: random.Random, known: Container[str] = ()) -> Iterator[Case]:
    """One of each kind of file that is not known, with every damage, at every moment."""
    for moment, folder in moments.items():
        kinds: dict[str, list[str]] = {}
        for file in files(folder):
            kinds.setdefault(kind_of(file), []).append(file)
        for kind, same in kinds.items():
            if kind not in known:
                for how in DAMAGES:
                    yield Case(moment, kind, rng.choice(same), how, name)


def records(out: Path, name: str) -> list[dict[str, Any]]:
    volatile = ("time",)
    lines = sorted(JsonLines(out / name).read(), key=lambda line: (str(line.get("phase")), str(line.get("step"))))
    return [{k: v for k, v in line.items() if k not in volatile} for line in lines]


def lost(out: Path) -> bool:
    """Whether the run said that records are lost that no phase reads."""
    told = JsonLines(out / "repairs.jsonl").read()
    return any("no phase reads it" in one["consequence"] or "removed" in one["consequence"] for one in told)


def same_files(out: Path, straight: Path) -> bool:
    """Whether the same tables and weights are there, byte by byte. That is quicker than to compare what they hold."""
    names = [{p.relative_to(run) for kind in ("parquet", "safetensors") for p in run.rglob(f"*.{kind}")}
             for run in (out, straight)]  # fmt: skip
    return names[0] == names[1] and all(filecmp.cmp(out / n, straight / n, shallow=False) for n in names[0])


def judge(case: Case, out: Path, straight: Path, status: int, said: str) -> tuple[str, str]:
    if status == 2:
        named = str(out.name) in said and re.search(r"repair|restore|start|choose", said, re.IGNORECASE)
        return ("refused", said.strip()[-300:]) if named else ("TRACEBACK", said[-600:])
    if status != 0:
        return "TRACEBACK", said[-900:]
    for folder in out.glob("final-damaged*"):
        shutil.rmtree(folder)
    try:
        if not same_files(out, straight):
            assert_same_run(straight, out)
        assert records(out, "dropped.jsonl") == records(straight, "dropped.jsonl"), "dropped.jsonl"
    except Exception as error:  # noqa: BLE001 - a file that cannot be read differs as well.
        return "SILENT", f"{type(error).__name__}: {str(error)[:300]}"
    return compare_records(case, out, straight)


def compare_records(case: Case, out: Path, straight: Path) -> tuple[str, str]:
    from adaptpo.cli.verify import verify

    try:
        left = [fault for one in verify(out) for fault in one.faults]
        logs = ["metrics.jsonl", *(str(path.relative_to(straight)) for path in straight.rglob("pair_weights.jsonl"))]
        same = all(records(out, log) == records(straight, log) for log in logs)
    except Exception as error:  # noqa: BLE001 - as above.
        return ("named", str(error)[:200]) if lost(out) else ("SILENT", str(error)[:300])
    if same and not left:
        return "same", ""
    return ("named", "; ".join(left)[:200]) if lost(out) else ("SILENT", f"records differ or: {left}"[:300])


def outcome(case: Case, run: Prepared, seed: int) -> Outcome:
    out = run.folder / "run"  # Where it began: its config.yaml names the folder.
    shutil.copytree(run.moments[case.moment], out)
    try:
        if not damage(case.damage, out / case.file, run.folder / "another" / case.file, seed):
            return Outcome(case, "unchanged", "")
        status = train(run.start(), longest=120)
        said = out.with_suffix(".log").read_text(errors="replace")
        return Outcome(case, *judge(case, out, run.folder / "straight", status, said))
    finally:
        shutil.rmtree(out)
        out.with_suffix(".log").unlink(missing_ok=True)


def all_runs(folder: Path) -> dict[str, Prepared]:
    return {name: prepare(folder / name, variant) for name, variant in ({"plain": PLAIN} | OTHERS).items()}


def all_cases(runs: dict[str, Prepared], seed: int) -> list[Case]:
    """Those of the plain run, then those of the files that the others have beside."""
    rng, known = random.Random(seed), runs["plain"].kinds()
    found = evenly(cases("plain", runs["plain"].moments, rng), rng)
    beside = (case for name, run in runs.items() if name != "plain" for case in cases(name, run.moments, rng, known))
    return found + evenly(beside, rng)


def evenly(everything: Iterable[Case], rng: random.Random) -> list[Case]:
    """First one case of each file, damage and class of moments, then a second of each, and so on."""
    chosen, turns = list(everything), Counter[tuple[str, ...]]()
    rng.shuffle(chosen)
    order = []
    for number, case in enumerate(chosen):
        group = (case.run, case.kind, case.damage, class_of(case.moment))
        turns[group] += 1
        order.append((turns[group], number))
    return [chosen[number] for _, number in sorted(order)]


def class_of(moment: str) -> str:
    if moment == ENDED:
        return "after the end"
    return "between phases" if moment.startswith("done:") else "during a phase"


@dataclass(frozen=True)
class Results:
    """The outcomes of cases, in a file; the last one of a case counts."""

    path: Path

    def add(self, one: Outcome) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(one)) + "\n")

    def read(self) -> dict[Case, Outcome]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        found = [Outcome(**json.loads(line)) for line in lines]
        return {case: replace(one, case=case) for one in found for case in [Case(**one.case)]}  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("corruption.jsonl"), help="(default: corruption.jsonl)")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no case after this time (default: no end)")
    parser.add_argument("--seed", type=int, default=0, help="seed of order, files and damage (default: 0)")
    options = parser.parse_args()
    results = Results(options.results)
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as name:
        runs = all_runs(Path(name))
        everything = all_cases(runs, options.seed)
        done = {case for case, one in results.read().items() if not one.result.isupper()}
        left = [case for case in everything if case not in done]
        print(f"{len(left)} of {len(everything)} cases are left", flush=True)
        for case in left:
            if time.monotonic() > end:
                break
            one = outcome(case, runs[case.run], options.seed)
            results.add(one)
            if one.result.isupper():
                print(f"{one.result}: {one.case}\n  {one.detail}", flush=True)
    outcomes = list(results.read().values())
    print(summary(outcomes))
    return int(any(one.result.isupper() for one in outcomes))


def summary(outcomes: list[Outcome]) -> str:
    """Counts by class of moments, artefact, damage and moment, as Markdown."""
    results = sorted({one.result for one in outcomes})
    parts = []
    keys = {
        "run": lambda case: case.run, "when": lambda case: class_of(case.moment), "damage": lambda case: case.damage,
        "moment": lambda case: f"`{case.moment}`", "artefact": lambda case: f"`{case.kind}`",
    }  # fmt: skip
    for title, key in keys.items():
        counts = Counter((key(one.case), one.result) for one in outcomes)
        names = sorted({key(one.case) for one in outcomes})
        rows = [f"| {name} | " + " | ".join(str(counts[name, result]) for result in results) + " |" for name in names]
        parts.append("\n".join([f"| {title} | {' | '.join(results)} |", f"|---|{'---|' * len(results)}", *rows]))
    totals = Counter(one.result for one in outcomes)
    return "\n\n".join([*parts, f"{len(outcomes)} cases: " + ", ".join(f"{totals[r]} {r}" for r in results)])


if __name__ == "__main__":
    sys.exit(main())
