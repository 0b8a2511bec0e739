"""The definition of a table, and which of its rows can be run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from adaptpo.config.base import nearest
from adaptpo.errors import ConfigError
from adaptpo.sandbox.tables.papers import Figures, MetaAPO
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.view import View

STANDARD = (
    "true_reward",
    "difference",
    "win_rate",
    "length_controlled",
    "words",
    "steps",
    "annotated",
    "answers",
    "seconds",
)


@dataclass(frozen=True)
class Table:
    """Rows that are compared. `reference` is the label of the row that the others in each group are compared with.

    `columns`: the columns of our runs, by the names in `adaptpo.sandbox.tables.text.COLUMNS`. `paper`: the paper whose
    figures are shown beside them. `view`: how the rows are shown; None: one line for each.
    """

    title: str
    rows: tuple[Row, ...]
    reference: str
    note: str = ""
    columns: tuple[str, ...] = STANDARD
    paper: type[Figures] = MetaAPO
    view: View | None = None


def unavailable(table: Table, known: Collection[str]) -> list[Row]:
    """The rows whose method does not exist (yet)."""
    return [row for row in table.rows if row.method not in known]


def asked_rows(
    table: Table, methods: Sequence[str] | None, known: Collection[str], labels: Sequence[str] | None = None
) -> list[Row]:
    """The rows to run: those of `methods`, or all whose method is `known`; of these, those with `labels`.

    Raises ConfigError for a method or a label that no row of the table has, and for a method that does not exist.
    """
    refuse_others("--methods", methods, "method", [row.method for row in table.rows])
    refuse_others("--rows", labels, "label", [row.label for row in table.rows])
    for name in methods or ():
        if name not in known:
            raise ConfigError(f"--methods: the method '{name}' is not available; {nearest(name, list(known))}")
    rows = [row for row in table.rows if row.method in (known if methods is None else methods)]
    return [row for row in rows if labels is None or row.label in labels]


def refuse_others(option: str, asked: Sequence[str] | None, kind: str, present: Sequence[str]) -> None:
    for name in asked or ():
        if name not in present:
            known = list(dict.fromkeys(present))
            raise ConfigError(f"{option}: no row of this table has the {kind} '{name}'; {nearest(name, known)}")


def find_table(name: str, tables: Mapping[str, Table]) -> Table:
    """The table with this name. Raises a ConfigError that lists the tables if there is none."""
    if name not in tables:
        listed = "\n".join(f"  {key}: {table.title}" for key, table in tables.items())
        raise ConfigError(f"unknown table '{name}'; choose one of:\n{listed}")
    return tables[name]
