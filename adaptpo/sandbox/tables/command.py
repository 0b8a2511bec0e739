"""`adaptpo sandbox table` and `study`: run what a table needs and write the table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from adaptpo.errors import ConfigError
from adaptpo.methods import METHODS
from adaptpo.report.canvas import png
from adaptpo.run.files import whole_file, write_json
from adaptpo.sandbox.tables.cells import Cell, Outcome, cells_of, finished_cells, run_cells
from adaptpo.sandbox.tables.docs import check_markers, section, write_section
from adaptpo.sandbox.tables.known import check_worlds, known_outcome, read_known
from adaptpo.sandbox.tables.options import Options
from adaptpo.sandbox.tables.plot import draw
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.summary import RowSummary, record_of, summarize
from adaptpo.sandbox.tables.table import Table, asked_rows, unavailable
from adaptpo.sandbox.tables.terminal import show
from adaptpo.sandbox.tables.text import grid, remarks


def run_table(name: str, table: Table, options: Options) -> list[RowSummary]:
    """Runs, shows and writes the table; skips what exists already.

    Raises ConfigError for methods and rows that the table does not have or that do not exist, and if no row is left.
    """
    rows = asked_rows(table, options.methods, METHODS, options.labels)
    if not rows:
        raise ConfigError(
            f"no row of the table '{name}' has an available method and one of the labels, if any are given"
        )
    if options.docs is not None:
        check_markers(options.docs, name)
    outcomes = outcomes_of(cells_of(rows, options.worlds, options.runs, options.world), options)
    summaries = summarize(rows, outcomes, table.reference, options.unit)
    write_files(name, table, options, summaries)
    return summaries


def outcomes_of(cells: Sequence[Cell], options: Options) -> list[Outcome]:
    """The cells' outcomes: known ones, and for the others those of their runs."""
    known = read_known(options.known)
    found = [known_outcome(cell, known) for cell in cells]
    missing = [cell for cell, outcome in zip(cells, found, strict=True) if outcome is None]
    if options.known:
        print(f"Known: {len(cells) - len(missing)} of {len(cells)} runs")
    ran = iter(run_cells(missing, options.out, options.jobs) if options.jobs else finished_cells(missing, options.out))
    outcomes = [outcome or next(ran) for outcome in found]
    check_worlds(outcomes)
    return outcomes


def write_files(name: str, table: Table, options: Options, summaries: list[RowSummary]) -> None:
    """Writes the table as JSON and PNG, to the terminal and, if requested, to a Markdown file."""
    folder, today = options.out / "tables", date.today().isoformat()
    places = options.places
    cells = table.view.grid(summaries, places) if table.view else grid(table, summaries, places)
    notes = notes_of(table, summaries, options)
    write_json(folder / f"{name}.json", record(name, table, options, summaries) | {"date": today})
    with whole_file(folder / f"{name}.png") as temporary:
        temporary.write_bytes(png(draw(table, summaries, options.unit)))
    errors = [error for summary in summaries for error in summary.errors]
    if options.docs is not None:
        failures = [f"Failed: {' '.join(error.split())}" for error in errors]
        written = section(table.title, options.command(name), today, cells, [*notes, *failures])
        write_section(options.docs, name, written)
    show(table.title, cells, notes, errors)
    print(f"Written: {folder / name}.json and .png" + (f", {options.docs}" if options.docs else ""))


def notes_of(table: Table, summaries: list[RowSummary], options: Options) -> list[str]:
    everything = options.methods is None and options.labels is None
    missing = labels(unavailable(table, METHODS)) if everything else ""
    own = table.view.remarks(summaries, options.seeds) if table.view else None
    return [
        *(own or remarks(table, summaries, options)),
        *([table.note] if table.note else []),
        *([f"Not available: {missing}."] if missing else []),
    ]


def labels(rows: list[Row]) -> str:
    """Each row once, with its missing method."""
    return ", ".join(dict.fromkeys(f"{row.label} ({row.method})" for row in rows))


def record(name: str, table: Table, options: Options, summaries: list[RowSummary]) -> dict[str, object]:
    return {
        "table": name,
        "title": table.title,
        "command": options.command(name),
        "seeds": list(options.worlds),
        "runs": options.runs,
        "intervals_between": options.unit,
        "reference": table.reference,
        "not_available": [row.label for row in unavailable(table, METHODS)],
        "rows": [record_of(summary) for summary in summaries],
        **({"lines": table.view.record(summaries)} if table.view else {}),
    }
