"""Results as a terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from adaptpo.evaluation.comparing import Cell, Comparison
from adaptpo.evaluation.intervals import Interval
from adaptpo.evaluation.result import Number, Result
from adaptpo.evaluation.tasks import CHAT_TEMPLATE
from adaptpo.types import Row

PIPED_WIDTH = 160
"""Columns of output that goes to a file or a pipe, and need not fit a screen."""


def terminal() -> Console:
    """The console of standard output."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)


def show(result: Result, console: Console | None = None) -> None:
    """Print one result: its origin, its numbers, and what to beware of."""
    console = console or terminal()
    for line in heading(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(number_table(result.numbers))
    for warning in result.warnings:
        console.print(f"! {warning}", highlight=False, markup=False, soft_wrap=True)


def heading(result: Result) -> list[str]:
    origin = result.origin
    return [
        f"{result.suite}: {origin.model}",
        f"judge: {origin.judge}; baseline: {origin.baseline}",
        f"decoding: {said(origin.decoding)}; judge's template: {origin.template}",
        f"verdicts: {result.n} valid, {sum(result.invalid.values())} invalid{reasons(result.invalid)}",
    ]


def said(decoding: Mapping[str, object] | str) -> str:
    return decoding if isinstance(decoding, str) else ", ".join(f"{name} {value}" for name, value in decoding.items())


def reasons(invalid: Mapping[str, int]) -> str:
    found = [f"{count} {reason}" for reason, count in invalid.items() if count]
    return f" ({', '.join(found)})" if found else ""


def number_table(numbers: Sequence[Number]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("number", "value", "interval", "kind of interval"):
        table.add_column(title, no_wrap=title != "kind of interval", justify="right" if title == "value" else "left")
    for number in numbers:
        low_high, kind = interval_cells(number.interval)
        table.add_row(number.name, f"{number.value:.5g}", low_high, kind or number.note)
    return table


def interval_cells(interval: Interval | None) -> tuple[str, str]:
    if interval is None:
        return "", ""
    spread = "" if interval.deviation is None else f", sd {interval.deviation:.2f}"
    return f"{interval.low:.2f} to {interval.high:.2f}", f"{interval.level:.0%} {interval.kind}{spread}"


def show_comparison(found: Comparison, console: Console | None = None) -> None:
    """Print the numbers of all entries, their differences from the first one, and what to beware of."""
    console = console or terminal()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=found.suite, title_justify="left")
    for title in ("", *found.columns):
        table.add_column(title, no_wrap=True)
    for name, cells in found.cells.items():
        table.add_row(name, *map(cell_text, cells))
    console.print(table)
    console.print(difference_table(found))
    for warning in found.warnings:
        console.print(f"! {warning}", highlight=False, markup=False, soft_wrap=True)


def cell_text(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.mean:.2f}" + ("" if cell.deviation is None else f" ± {cell.deviation:.2f} ({cell.seeds} seeds)")


def difference_table(found: Comparison) -> Table:
    first = next(iter(found.cells))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in (
        f"minus {first}",
        "prompts of",
        "n",
        f"difference in {found.measured}",
        "95 % interval",
        "t-test over seeds",
    ):
        table.add_column(title)
    for one in found.differences:
        low_high = f"{one.interval.low:+.2f} to {one.interval.high:+.2f}"
        test = "-" if one.test is None else f"p = {one.test:.3g}"
        table.add_row(one.name, one.group, str(one.prompts), f"{one.value:+.2f}", low_high, test)
    table.caption = found.differences[0].interval.kind
    return table


def show_tasks(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print what lm-eval found."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("task", "shots", "chat template", "metric", "value", "95 % interval", "n"):
        table.add_column(title)
    for row in rows:
        low_high = "-" if row["interval"] is None else f"{row['interval'][0]:.4g} to {row['interval'][1]:.4g}"
        shots = "-" if row["shots"] is None else str(row["shots"])
        chat = "applied" if row[CHAT_TEMPLATE] else "-"
        table.add_row(row["task"], shots, chat, row["metric"], f"{row['value']:.4g}", low_high, str(row["n"]))
    (console or terminal()).print(table)
