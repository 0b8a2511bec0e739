"""The report's tables."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from adaptpo.report.formats import duration, styled
from adaptpo.report.reading import RunData, Stage, finite, number
from adaptpo.report.visits import FloatArray
from adaptpo.types import Row

REASONS_AT_MOST = 20
LISTED_AT_MOST = 100
OWN_REWARD = "The reward and the win rate come from the annotator that the run trains on, on its own scale."


@dataclass(frozen=True)
class Table:
    """A table ready to print: every cell is text, and columns without any value are removed."""

    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, str | None]], note: str = "") -> Table | None:
        """Builds a table from rows with the same keys; None if there are no rows."""
        rows = list(rows)
        if not rows:
            return None
        columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
        return cls(columns, [["–" if (cell := row[name]) is None else cell for name in columns] for row in rows], note)


@dataclass(frozen=True)
class IterationCounts:
    """Counts from one iteration's files; None for anything that the method or the unfinished run does not have.
    `alone` are the prompts without an offline pair, which are not among `prompts` and `generated_for`."""

    prompts: int | None
    alone: int | None
    generated_for: int | None
    responses: int | None
    cut: int | None
    annotated: int | None
    invalid: int | None


def iteration_counts(run: RunData, t: int) -> IterationCounts:
    folder = f"iterations/{t}"
    responses = run.table(f"{folder}/responses/*.parquet", "prompt_id", "ended")
    annotations = run.table(f"{folder}/annotations/*.parquet", "reward")
    valid = len(finite(annotations, "reward"))
    selects = bool(run.files(f"{folder}/selection.parquet"))
    of_part, without_pair = run.parts == t, np.flatnonzero(~run.paired)
    answered = np.unique(responses.get("prompt_id", np.zeros(0, np.int64)))
    return IterationCounts(
        prompts=int((of_part & run.paired).sum()) or None,
        alone=int((of_part & ~run.paired).sum()) or None,
        generated_for=len(answered) - int(np.isin(answered, without_pair).sum()) if selects else None,
        responses=len(responses["ended"]) if responses else None,
        cut=int((~responses["ended"].astype(bool)).sum()) if responses else None,
        annotated=valid if annotations else None,
        invalid=len(annotations["reward"]) - valid if annotations else None,
    )


def iteration_table(run: RunData) -> Table | None:
    """One row for each iteration."""
    return Table.of((iteration_row(run, t) for t in run.iterations), last_attempts(run, "iterations/"))


def iteration_row(run: RunData, t: int) -> dict[str, str | None]:
    counts = iteration_counts(run, t)
    pairs = run.table(f"iterations/{t}/pairs.parquet", "source", "reward_gap")
    weights = [line["weight"] for line in run.pair_weights[t] if line["source"] == "offline"]
    seconds = run.seconds(f"iterations/{t}/")
    return {
        "iteration": str(t),
        "boundary score": styled(run.phases.get(f"iterations/{t}/stage", {}).get("boundary_score"), ".3f"),
        "prompts": styled(counts.prompts),
        "generated for": styled(counts.generated_for),
        "share": styled(ratio(counts.generated_for, counts.prompts), ".1%"),
        "prompts without a pair": styled(counts.alone),
        "responses": styled(counts.responses),
        "cut off": styled(counts.cut),
        "invalid": styled(counts.invalid),
        "new pairs": styled(int((pairs["source"] != "offline").sum()) if pairs else None),
        "no pair": styled(run.phases.get(f"iterations/{t}/pair", {}).get("no_pair")),
        "mean reward gap": styled(mean(finite(pairs, "reward_gap")), ".3f"),
        "mean offline weight": styled(mean(np.array(weights, dtype=np.float64)), ".3f"),
        "time": duration(seconds) if seconds else None,
    }


def ratio(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def mean(values: FloatArray) -> float | None:
    return float(values.mean()) if len(values) else None


def evaluation_table(run: RunData) -> Table | None:
    """One row for each evaluation on the held-out prompts."""
    rows = [evaluation_row(stage) for stage in run.stages]
    return Table.of(rows, OWN_REWARD if any(row["reward"] is not None for row in rows) else "")


def evaluation_row(stage: Stage) -> dict[str, str | None]:
    return {
        "stage": stage.label,
        "reward": styled(stage.value("reward/mean"), ".3f"),
        "± std": styled(stage.value("reward/std"), ".3f"),
        "win rate": styled(stage.value("win_rate"), ".1%"),
        "offline score": styled(stage.value("score/mean"), ".3f"),
        "length (tokens)": styled(stage.value("length/mean"), ",.1f"),
        "ended": styled(stage.value("ended"), ".1%"),
    }


def phase_table(run: RunData) -> Table | None:
    """One row for each phase that has started, with its counts."""
    return Table.of((phase_row(phase, state) for phase, state in run.phases.items()), last_attempts(run))


def phase_row(phase: str, state: Mapping[str, Any]) -> dict[str, str | None]:
    facts = {name: value for name, value in state.items() if name not in ("done", "seconds", "cpu_seconds", "attempts")}
    counts = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in facts.items()
        if not isinstance(value, dict)
    ]
    attempts = state.get("attempts", 1)
    return {
        "phase": phase,
        "status": ("done" if state.get("done") else "unfinished") + (f", attempt {attempts}" if attempts > 1 else ""),
        "seconds": styled(number(state.get("seconds")), ",.1f"),
        "counts": ", ".join(counts),
    }


def last_attempts(run: RunData, prefix: str = "") -> str:
    """A sentence that names the phases whose seconds cover only their last attempt; empty if there are none."""
    phases = run.repeated(prefix)
    return f"Interrupted and resumed; only the last attempt is counted: {', '.join(phases)}." if phases else ""


def dropped_table(run: RunData) -> Table | None:
    """Dropped rows, prompts and responses by phase and reason, most frequent first, with examples.

    Reasons that differ only in numbers count as one.
    """
    ranked = dropped_groups(run)
    rows = [dropped_row(lines) for lines in ranked[:REASONS_AT_MOST]]
    rest = sum(map(len, ranked[REASONS_AT_MOST:]))
    if rest:
        more = {"reason": "other reasons", "phase": None, "count": styled(rest), "examples": "see dropped.jsonl"}
        rows.append(more)
    return Table.of(rows)


def dropped_groups(run: RunData) -> list[list[Row]]:
    """What was left out, by phase and reason, most frequent first."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for line in run.dropped:
        groups[line["phase"], re.sub(r"\d+", "0", line["reason"])].append(line)
    return sorted(groups.values(), key=len, reverse=True)


def dropped_list(run: RunData) -> list[tuple[str, str, str]]:
    """Anchor, place and reason of what was left out: the first `LISTED_AT_MOST` of each reason in the table."""
    groups = dropped_groups(run)[:REASONS_AT_MOST]
    return [(anchor(line), place(line), line["reason"]) for lines in groups for line in lines[:LISTED_AT_MOST]]


def dropped_row(lines: Sequence[Row]) -> dict[str, str | None]:
    """The row of one reason, in its most frequent wording."""
    wordings = Counter(line["reason"] for line in lines)
    return {
        "reason": wordings.most_common(1)[0][0] + (" (numbers vary)" if len(wordings) > 1 else ""),
        "phase": lines[0]["phase"],
        "count": styled(len(lines)),
        "examples": Markup(", ").join(map(link, lines[:4])) + (", …" if len(lines) > 4 else ""),
    }


def link(line: Row) -> Markup:
    return Markup('<a href="#{}">{}</a>').format(anchor(line), place(line))


def anchor(line: Row) -> str:
    return "left-out-" + re.sub(r"[^a-z0-9]+", "-", f"{line['phase']} {place(line)}".lower())


def place(line: Row) -> str:
    if "row" in line:
        return f"row {line['row']}" + (f" of {line['dataset']}" if "dataset" in line else "")
    response = f" response {line['index']}" if "index" in line else ""
    return f"prompt {line['prompt_id']}{response}"
