"""The page of a boundary measurement, from its folder alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from adaptpo.errors import RunError
from adaptpo.report import stage_plots
from adaptpo.report.figures import FigureSpec, render
from adaptpo.report.page import template
from adaptpo.report.reading import RunData
from adaptpo.report.tables import Table, dropped_table
from adaptpo.run.files import write_text
from adaptpo.stage.diagnostics import CandidateFacts, read_candidates
from adaptpo.stage.score import LEVELS
from adaptpo.stage.tally import Tally
from adaptpo.stage.words import facts, headline, how_to_decide
from adaptpo.types import Row

MEANING = {
    "preference injection": (
        "The offline responses win more comparisons than the policy's own. Such a policy gains most from diverse "
        "data written by others: train on the offline pairs, and measure again afterwards."
    ),
    "preference fine-tuning": (
        "The policy's own responses win more comparisons than the offline ones. Such a policy gains most from "
        "high-quality data: train on pairs of its own samples, annotated by the preference model."
    ),
    "undecided": (
        "The interval contains 0.5, so this measurement does not distinguish the stages. Measure on more prompts, or "
        "blend both kinds of data."
    ),
}


def write_stage_report(folder: Path) -> Path:
    """Writes `report/report.html` and its figures below a folder that `adaptpo stage` wrote; returns the page's path.

    Raises RunError if the folder holds no finished measurement.
    """
    if not (folder / "stage.json").is_file():
        raise RunError(f"{folder} holds no finished measurement; run `adaptpo stage` with --out {folder} to finish it")
    run = RunData.open(folder)
    found = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    out = folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    page = template("stage.html.j2").render(
        title=run.root.name,
        headline=headline(found),
        meaning=MEANING[found["decision"]],
        to_decide=how_to_decide(found),
        decided=found["decision"] != "undecided",
        facts=facts(found),
        inputs=inputs(found),
        histogram=histogram_table(found),
        dropped=dropped_table(run),
        figures={spec.name: render(spec, out) for spec in figures(run, found)},
        config=run.config_text,
    )
    write_text(out / "report.html", page)
    return out / "report.html"


def inputs(found: Row) -> dict[str, str]:
    sampling = ", ".join(f"{name} {value}" for name, value in found["sampling"].items())
    names = {"policy": "policy", "data": "data", "preference model": "preference_model"}
    return {label: str(found[key]) for label, key in names.items()} | {"sampling": sampling}


def histogram_table(found: Row) -> Table | None:
    """Prompts by the number of comparisons that the policy won."""
    total = max(found["prompts"], 1)
    return Table.of(
        {"won of 4": f"{level / 2:g}", "prompts": f"{count:,}", "share": f"{count / total:.1%}"}
        for level, count in enumerate(found["counts"])
        if count
    )


def figures(run: RunData, found: Row) -> list[FigureSpec]:
    """The figures of a measurement; [] if no prompt was measured."""
    comparisons = rows_of(run, "stage/comparisons/*.parquet", "prompt_id", "preference")
    names = ("prompt_id", "source", "first", "second", "first_tokens", "second_tokens")
    candidates = read_candidates(rows_of(run, "stage/candidates/*.parquet", *names))
    scores = list(Tally.of(comparisons).scores.values())
    if not scores:
        return []
    return [path_figure(scores), histogram_figure(found), length_figure(candidates), diversity_figure(candidates)]


def rows_of(run: RunData, pattern: str, *columns: str) -> list[Row]:
    found: dict[str, Any] = run.table(pattern, *columns)
    values = [found[name].tolist() for name in columns] if found else []
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def path_figure(scores: list[float]) -> FigureSpec:
    caption = (
        "The boundary score and its 95 % interval as more prompts are measured. Below 0.5 the offline responses win "
        "(preference injection), above it the policy's own (preference fine-tuning). The measurement decides once the "
        "interval no longer contains 0.5."
    )
    return FigureSpec("path", "Uncertainty of the score", caption, lambda theme: stage_plots.score_path(scores, theme))


def histogram_figure(found: Row) -> FigureSpec:
    shares = np.array(found["counts"]) / max(sum(found["counts"]), 1)
    caption = (
        "Prompts by the share of their four comparisons that the policy won. Mass at both ends means that the prompts "
        "differ: the policy is ahead on some and behind on others, and `stage.groups` may be worth a try."
    )
    levels = np.arange(LEVELS + 1) / LEVELS
    return FigureSpec(
        "histogram", "Scores of prompts", caption, lambda theme: stage_plots.score_histogram(levels, shares, theme)
    )


def length_figure(candidates: CandidateFacts) -> FigureSpec:
    caption = (
        "Tokens of the compared responses. If the winning side is also the longer one, look at the share of "
        "comparisons that the longer response won: far above one half, the preference model may favour length; far "
        "below it, brevity."
    )
    sides = [
        ("fresh", "online", candidates.fresh_tokens.ravel()),
        ("offline", "offline", candidates.offline_tokens.ravel()),
    ]
    return FigureSpec("lengths", "Lengths", caption, lambda theme: stage_plots.densities(sides, "tokens", theme))


def diversity_figure(candidates: CandidateFacts) -> FigureSpec:
    caption = (
        "Difference of the log-probabilities of a pair's two responses under the policy (Eq. 12; Figure 3 follows it "
        "through training). A wider curve means more diverse pairs, which a policy in preference injection needs."
    )
    sides = [
        (label, role, logps[:, 0] - logps[:, 1])
        for label, role, logps in (
            ("fresh, first minus second", "online", candidates.fresh_logps),
            ("offline, chosen minus rejected", "offline", candidates.offline_logps),
        )
    ]
    return FigureSpec(
        "diversity", "Intra-diversity", caption, lambda theme: stage_plots.densities(sides, "nats", theme)
    )
