"""A table's section in a Markdown file, between two markers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from adaptpo.errors import ConfigError
from adaptpo.run.files import write_text
from adaptpo.sandbox.tables.view import Grid


def markers(name: str) -> tuple[str, str]:
    return f"<!-- table {name} -->", f"<!-- end {name} -->"


def write_section(path: Path, name: str, section: str) -> None:
    """Replaces the section of this table, or appends it; the rest of the file stays.

    Raises ConfigError if only one of the markers is present.
    """
    write_text(path, replaced(text_of(path), name, section))


def check_markers(path: Path, name: str) -> None:
    """Raises ConfigError if `write_section` would: before hours of runs rather than after them."""
    replaced(text_of(path), name, "")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def replaced(text: str, name: str, section: str) -> str:
    begin, end = markers(name)
    whole = f"{begin}\n{section.strip()}\n{end}"
    if begin not in text and end not in text:
        return f"{text.rstrip()}\n\n{whole}\n".lstrip()
    head, _, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not closed:
        raise ConfigError(f"the file for --docs needs both '{begin}' and '{end}', in this order; fix it by hand")
    return f"{head}{whole}{tail}"


def section(title: str, command: str, date: str, grid: Grid, notes: Sequence[str]) -> str:
    """The section: heading, command and date, the table, and notes."""
    parts = [f"### {title}", f"`{command}`, {date}.", markdown(grid), "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts)


def markdown(grid: Grid) -> str:
    """The table in Markdown; the name of a group is a separate row."""
    lines = [row_line(grid.titles), "|" + "---|" * len(grid.titles)]
    for group, rows in groupby(zip(grid.groups, grid.rows, strict=True), key=lambda pair: pair[0]):
        if group:
            lines.append(row_line([f"**{group}**", *[""] * (len(grid.titles) - 1)]))
        lines += [row_line(cells) for _, cells in rows]
    return "\n".join(lines)


def row_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
