"""`adaptpo sandbox table`: runs what a table needs and writes the table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from adaptpo.errors import ConfigError
from adaptpo.methods import METHODS
from adaptpo.report.canvas import png
from adaptpo.run.files import whole_file, write_json
from adaptpo.sandbox.tables.cells import cells_of, run_cells
from adaptpo.sandbox.tables.docs import check_markers, section, write_section
from adaptpo.sandbox.tables.plot import draw
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.summary import RowSummary, record_of, summarize
from adaptpo.sandbox.tables.table import Table, asked_rows, unavailable
from adaptpo.sandbox.tables.terminal import show
from adaptpo.sandbox.tables.text import grid, remarks


@dataclass(frozen=True)
class Options:
    """`seeds`: number of worlds, with seeds from `first`. `runs`: runs of each row in each world, with seeds of their
    own. `methods`: only rows of these methods. `jobs`: number of parallel processes. `prompts`: offline pairs of each
    world. `docs`: a Markdown file to write the table's section to."""

    seeds: int
    out: Path
    runs: int = 1
    first: int = 0
    methods: tuple[str, ...] | None = None
    jobs: int = 1
    prompts: int = 3000
    docs: Path | None = None

    def __post_init__(self) -> None:
        if min(self.seeds, self.runs, self.jobs) < 1 or self.first < 0:
            raise ConfigError("--seeds, --runs and --jobs must be at least 1, and --first at least 0")

    @property
    def worlds(self) -> range:
        return range(self.first, self.first + self.seeds)

    def command(self, name: str) -> str:
        """The command that gives the same numbers, without options for where to write them."""
        methods = f" --methods {','.join(self.methods)}" if self.methods is not None else ""
        first = f" --first {self.first}" if self.first else ""
        runs = f" --runs {self.runs}" if self.runs > 1 else ""
        return f"adaptpo sandbox table {name} --seeds {self.seeds}{first}{runs}{methods} --prompts {self.prompts}"


def run_table(name: str, table: Table, options: Options) -> list[RowSummary]:
    """Runs, shows and writes the table; skips what exists already.

    Raises ConfigError for `methods` that the table does not have or that do not exist, and if no row is left.
    """
    rows = asked_rows(table, options.methods, METHODS)
    if not rows:
        raise ConfigError(f"no row of the table '{name}' has an available method")
    if options.docs is not None:
        check_markers(options.docs, name)
    outcomes = run_cells(cells_of(rows, options.worlds, options.runs, options.prompts), options.out, options.jobs)
    summaries = summarize(rows, outcomes, table.reference)
    write_files(name, table, options, summaries)
    return summaries


def write_files(name: str, table: Table, options: Options, summaries: list[RowSummary]) -> None:
    """Writes the table as JSON and PNG, to the terminal and, if requested, to a Markdown file."""
    folder, today = options.out / "tables", date.today().isoformat()
    places = options.seeds * options.runs
    cells = table.view.grid(summaries, places) if table.view else grid(table, summaries, places)
    notes = notes_of(table, summaries, options)
    write_json(folder / f"{name}.json", record(name, table, options, summaries) | {"date": today})
    with whole_file(folder / f"{name}.png") as temporary:
        temporary.write_bytes(png(draw(table, summaries)))
    errors = [error for summary in summaries for error in summary.errors]
    if options.docs is not None:
        failures = [f"Failed: {' '.join(error.split())}" for error in errors]
        written = section(table.title, options.command(name), today, cells, [*notes, *failures])
        write_section(options.docs, name, written)
    show(table.title, cells, notes, errors)
    print(f"Written: {folder / name}.json and .png" + (f", {options.docs}" if options.docs else ""))


def notes_of(table: Table, summaries: list[RowSummary], options: Options) -> list[str]:
    missing = labels(unavailable(table, METHODS)) if options.methods is None else ""
    own = table.view.remarks(summaries, options.seeds) if table.view else None
    return [
        *(own or remarks(table, summaries, options.seeds)),
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
        "reference": table.reference,
        "not_available": [row.label for row in unavailable(table, METHODS)],
        "rows": [record_of(summary) for summary in summaries],
        **({"lines": table.view.record(summaries)} if table.view else {}),
    }
