"""The corruption matrix: every kind of file of a run x every damage x every moment, each resumed to the end.

    python -m tests.campaign.corruption --out corruption.json

A case is a copy of a run that was killed at a moment (or has ended), with one file damaged, and started again. It ends

- `same`: as an uninterrupted run, bit for bit, and nothing is left to repair;
- `refused`: with status 2 and a message that names the run's file and a remedy;
- `named`: as an uninterrupted run, but for records that no phase reads, whose loss is said and recorded;
- `SILENT`: differently, or with damage that nobody was told of;
- `TRACEBACK`: in any other way.

The cases come in an order drawn by `--seed`; `--minutes` and `--share` take the first of them. A case costs about a
second of one core; TMPDIR on a file system in memory helps. Exits with status 1 if a case is silent or a traceback.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptpo.run.files import JsonLines
from tests.damage import DAMAGES, damage
from tests.runs import assert_same_run, context, run_in_process, start
from tests.tiny import save_policy, vowel_reward

MOMENTS = [
    "done:data",
    "file:reference/00002.parquet",
    "start:evaluate/initial",
    "saved:warmup:2",
    "done:warmup",
    "file:0/scores/00001.parquet",
    "done:iterations/0/select",
    "file:0/annotations/00000.parquet",
    "done:iterations/0/annotate",
    "done:iterations/0/pair",
    "saved:iterations/0:2",
    "done:iterations/0/train",
    "file:1/responses/00000.parquet",
    "saved:iterations/1:2",
    "done:iterations/1/train",
    "folder:.writing-final",
]
"""The run is killed here (see `tests.runs.arm`), one after the other."""
ENDED = "ended"
UNCHECKED = ("lock", "repairs.jsonl", "final-damaged")
"""What decides nothing: who holds the lock, and the record of repairs."""


@dataclass(frozen=True)
class Case:
    moment: str
    kind: str
    file: str
    damage: str


@dataclass(frozen=True)
class Outcome:
    case: Case
    result: str
    detail: str


def arguments(policy: str, out: Path, **more: Any) -> dict[str, Any]:
    return {"model": policy, "out": out, "reward": vowel_reward, "rows": 22, "held_out": 3, **more}


def run_case(arguments: dict[str, Any], log: Path) -> None:
    """Runs, or resumes, in this process; ends it as the command line would."""
    from adaptpo.errors import AdaptpoError

    gc.disable()
    gc.collect = lambda *_: 0  # Runs collect before each model that they load; here that is half of a case.
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            start(**arguments)
            status = 0
        except AdaptpoError as error:
            print(f"adaptpo: {error}", file=file)
            status = 2
        except BaseException:  # noqa: BLE001 - that nothing else gets here is what is tested.
            traceback.print_exc(file=file)
            status = 1
        file.flush()
        os._exit(status)


def resume(arguments: dict[str, Any], log: Path) -> int:
    process = context.Process(target=run_case, args=(arguments, log))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def kind_of(file: str) -> str:
    """The file without its numbers."""
    return re.sub(r"\d+", "N", file)


def files(out: Path) -> list[str]:
    found = (path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file())
    return [name for name in found if not name.startswith(UNCHECKED) and "/.writing-" not in f"/{name}"]


def cases(moments: dict[str, Path], rng: random.Random) -> Iterator[Case]:
    for moment, folder in moments.items():
        kinds: dict[str, list[str]] = {}
        for name in files(folder):
            kinds.setdefault(kind_of(name), []).append(name)
        for kind, names in kinds.items():
            for how in DAMAGES:
                yield Case(moment, kind, rng.choice(names), how)


def records(out: Path, name: str) -> list[dict[str, Any]]:
    volatile = ("time",)
    lines = sorted(JsonLines(out / name).read(), key=lambda line: (str(line.get("phase")), str(line.get("step"))))
    return [{k: v for k, v in line.items() if k not in volatile} for line in lines]


def lost(out: Path) -> bool:
    """Whether the run said that records are lost that no phase reads."""
    told = JsonLines(out / "repairs.jsonl").read()
    return any("no phase reads it" in one["consequence"] or "removed" in one["consequence"] for one in told)


def judge(case: Case, out: Path, straight: Path, status: int, said: str) -> tuple[str, str]:
    if status == 2:
        named = str(out.name) in said and re.search(r"repair|restore|start|choose", said, re.IGNORECASE)
        return ("refused", said.strip()[-300:]) if named else ("TRACEBACK", said[-600:])
    if status != 0:
        return "TRACEBACK", said[-900:]
    for folder in out.glob("final-damaged*"):
        shutil.rmtree(folder)
    try:
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


def at_moments(policy: str, folder: Path) -> dict[str, Path]:
    """Copies of one run at every moment, and at its end."""
    found: dict[str, Path] = {}
    out = folder / "run"
    for number, point in enumerate(MOMENTS):
        assert run_in_process(point, **arguments(policy, out)) == -9, point
        found[point] = shutil.copytree(out, folder / "moments" / str(number))
    assert run_in_process(**arguments(policy, out)) == 0
    found[ENDED] = shutil.copytree(out, folder / "moments" / ENDED)
    return found


def outcome(case: Case, number: int, folder: Path, moments: dict[str, Path], policy: str, seed: int) -> Outcome | None:
    out = folder / "cases" / str(number) / "run"
    shutil.copytree(moments[case.moment], out)
    try:
        if not damage(case.damage, out / case.file, folder / "another" / case.file, seed):
            return None
        log = out.parent / "log"
        status = resume(arguments(policy, out), log)
        return Outcome(case, *judge(case, out, folder / "straight", status, log.read_text(errors="replace")))
    finally:
        shutil.rmtree(out.parent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write every outcome to this JSON file")
    parser.add_argument("--share", type=float, default=1.0, help="share of the cases to take (default: 1.0)")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no case after this time (default: no end)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the share, the files and the damage (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="number of cases at a time (default: 1)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = save_policy(folder / "policy")
        assert run_in_process(**arguments(policy, folder / "straight")) == 0
        assert run_in_process(**arguments(policy, folder / "another", seed=1)) == 0
        moments = at_moments(policy, folder)
        everything = list(cases(moments, rng))
        chosen = rng.sample(everything, round(options.share * len(everything)))
        end = time.monotonic() + 60 * options.minutes
        print(f"{len(chosen)} of {len(everything)} cases", flush=True)

        def in_time(number: int, case: Case) -> Outcome | None:
            late = time.monotonic() > end
            return None if late else outcome(case, number, folder, moments, policy, options.seed)

        with ThreadPoolExecutor(options.jobs) as pool:
            outcomes = [one for one in shown(pool.map(in_time, range(len(chosen)), chosen)) if one is not None]
    if options.out:
        options.out.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    print(summary(outcomes))
    return int(any(one.result.isupper() for one in outcomes))


def shown(outcomes: Iterator[Outcome | None]) -> Iterator[Outcome | None]:
    for one in outcomes:
        if one is not None and one.result.isupper():
            print(f"{one.result}: {one.case}\n  {one.detail}", flush=True)
        yield one


def summary(outcomes: list[Outcome]) -> str:
    """Counts by artefact, by damage and by moment, as Markdown."""
    results = sorted({one.result for one in outcomes})
    parts = []
    for title, key in (("artefact", "kind"), ("damage", "damage"), ("moment", "moment")):
        counts = Counter((getattr(one.case, key), one.result) for one in outcomes)
        names = dict.fromkeys(getattr(one.case, key) for one in outcomes)
        rows = [f"| `{name}` | " + " | ".join(str(counts[name, result]) for result in results) + " |" for name in names]
        parts.append("\n".join([f"| {title} | {' | '.join(results)} |", f"|---|{'---|' * len(results)}", *rows]))
    totals = Counter(one.result for one in outcomes)
    return "\n\n".join([*parts, f"{len(outcomes)} cases: " + ", ".join(f"{totals[r]} {r}" for r in results)])


if __name__ == "__main__":
    sys.exit(main())
