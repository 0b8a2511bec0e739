"""The table of methods, built from the methods themselves."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from adaptpo.choices.described import choice_name
from adaptpo.choices.filters import FILTERS
from adaptpo.choices.method import Method
from adaptpo.choices.objectives import OBJECTIVES
from adaptpo.choices.pairing import PAIRINGS
from adaptpo.choices.policy_update import POLICY_TRAINERS
from adaptpo.choices.selection import SELECTIONS
from adaptpo.choices.weighting import WEIGHTINGS
from adaptpo.methods import METHODS


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
        "filter": repr(method.filter),
        "trainer": repr(method.trainer),
        "validation": None if method.validation is None else repr(method.validation),
        "reference": named_reference(method),
        "warmup_epochs": method.warmup_epochs,
        "num_train_epochs": method.num_train_epochs,
        "paper": " ".join(paper.group(1).split()) if paper else "",
    }


AXES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("selection", SELECTIONS),
    ("pairing", PAIRINGS),
    ("objective", OBJECTIVES),
    ("weighting", WEIGHTINGS),
)


def axis_names(name: str) -> list[str]:
    """The choices of a method by their names in the axes' tables."""
    method = METHODS[name]()
    return [choice_name(table, getattr(method, axis)) for axis, table in AXES]


def further(name: str) -> str:
    """A method's settings besides the four choices: a filter of the offline pairs, held-out pairs, another trainer or
    reference."""
    method = METHODS[name]()
    found = choice_name(FILTERS, method.filter)
    said = [found] if found != "all" else []
    said += [] if method.trainer.uses_pairs else [choice_name(POLICY_TRAINERS, method.trainer)]
    if method.validation is not None:
        said.append(f"holds out {method.validation.share:.0%}")
    said += [f"{method.num_train_epochs:g} epochs"] if method.num_train_epochs != 1 else []
    reference = named_reference(method)
    return ", ".join(said + ([] if reference == "initial" else [f"reference: {reference}"]))


def named_reference(method: Method) -> str:
    return method.reference if isinstance(method.reference, str) else "follows the policy"


def paper_of(row: dict[str, Any]) -> str:
    """The paper that the method is of, as it follows the method's sentence."""
    named = row["paper"].removeprefix("none").lstrip(".; ")
    return f"({named})" if named and named != row["paper"] else named


def print_table(rows: list[dict[str, Any]], as_json: bool = False) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    lines = [[row["name"], *axis_names(row["name"]), further(row["name"])] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("method", *(axis for axis, _ in AXES), "and"):
        table.add_column(title, no_wrap=True)
    for method, *choices in lines:
        table.add_row(f"[bold]{method}[/bold]", *choices)
    console = Console()
    # The terminal wraps lines that are too long: a name that the table cut in two could not be copied.
    needed = sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True)) + 4
    Console(width=max(console.width, needed)).print(table)
    for row in rows:
        console.print(f"  [bold]{row['name']}[/bold]  {row['summary']} [dim]{paper_of(row)}[/dim]", highlight=False)
    console.print("\n  Every hyperparameter: adaptpo methods --json", highlight=False)
