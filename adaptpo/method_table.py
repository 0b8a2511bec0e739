"""The table of methods, from the methods themselves."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from adaptpo.methods import METHODS
from adaptpo.objectives import OBJECTIVES
from adaptpo.pairing import PAIRINGS
from adaptpo.selection import SELECTIONS
from adaptpo.weighting import WEIGHTINGS


def method_rows() -> list[dict[str, Any]]:
    """One row per named method: its choices with their default hyperparameters, its paper, its warm-up."""
    return [method_row(name) for name in METHODS]


def method_row(name: str) -> dict[str, Any]:
    method = METHODS[name]()
    text = inspect.getdoc(METHODS[name]) or ""
    paper = re.search(r"Paper: (.*?)(?:\sDeviations?: |\n\n|\Z)", text, re.DOTALL)
    return {
        "name": name,
        "summary": text.split("\n")[0],
        **method.choices(),
        "warmup_epochs": method.warmup_epochs,
        "paper": " ".join(paper.group(1).split()) if paper else "",
    }


def axis_names(name: str) -> list[str]:
    """The choices of a method by their names in the axes' tables."""
    method = METHODS[name]()
    tables = (
        (method.selection, SELECTIONS),
        (method.pairing, PAIRINGS),
        (method.objective, OBJECTIVES),
        (method.weighting, WEIGHTINGS),
    )
    return [
        next((key for key, kind in table.items() if type(choice) is kind), repr(choice)) for choice, table in tables
    ]


def print_table(rows: list[dict[str, Any]], as_json: bool = False) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("method", "selection", "pairing", "objective", "weighting"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(f"[bold]{row['name']}[/bold]", *axis_names(row["name"]))
    console.print(table)
    for row in rows:
        console.print(f"  [bold]{row['name']}[/bold]  {row['summary']} [dim]{row['paper']}[/dim]", highlight=False)
    console.print("\n  Every hyperparameter: adaptpo methods --json", highlight=False)
