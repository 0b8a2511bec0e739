"""Results as a terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from adaptpo.evaluation.intervals import Interval
from adaptpo.evaluation.result import Number, Result


def show(result: Result, console: Console | None = None) -> None:
    """Print one result: its origin, its numbers, and what to beware of."""
    console = console or Console()
    for line in heading(result):
        console.print(line, highlight=False, markup=False)
    console.print(number_table(result.numbers))
    for warning in result.warnings:
        console.print(f"! {warning}", highlight=False, markup=False)


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
