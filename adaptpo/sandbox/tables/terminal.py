"""Shows a table on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from adaptpo.sandbox.tables.view import Grid

WIDTH_WITHOUT_TERMINAL = 160


def show(title: str, grid: Grid, notes: list[str], errors: list[str]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_WITHOUT_TERMINAL)
    console.print(rich_table(title, grid))
    for note in notes:
        console.print(note, highlight=False, markup=False)
    for error in errors:
        console.print(f"failed: {error}", style="red", highlight=False, markup=False)


def rich_table(title: str, grid: Grid) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for place, column in enumerate(grid.titles):
        table.add_column(column, justify="left" if place == 0 else "right")
    for before, group, cells in zip(["", *grid.groups], grid.groups, grid.rows, strict=False):
        if group != before:
            table.add_row(f"[bold]{escape(group)}[/bold]")
        table.add_row(*map(in_lines, cells))
    return table


def in_lines(cell: str) -> str:
    """The cell with its interval below the mean, and further figures of the paper below the first, to save width."""
    return escape(cell.replace(" [", "\n[").replace("; ", "\n"))
