"""What a table and a row of it are, and which rows can be run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptpo.config.recipe import nearest, set_value
from adaptpo.errors import ConfigError
from adaptpo.sandbox.tables.papers import Figures, MetaAPO

if TYPE_CHECKING:
    from adaptpo.sandbox.tables.view import View

METHOD_OF_THE_WORLD = "metaapo"
STANDARD = ("true_reward", "difference", "win_rate", "length_controlled", "annotated", "seconds")


@dataclass(frozen=True)
class Row:
    """One setting to be run in every world.

    `settings`: assignments to the world's recipe, as `adaptpo train --set` takes them; `method.name=X` keeps the
    recipe's objective (DPO with the world's beta), `method=X` takes the method's own. `world`: fields of
    `WorldSettings` in which this row's worlds differ. Rows of one `group` are compared with the group's reference.
    `start`: the row whose run, in the same world, makes the policy that this one starts from; None: the SFT policy.
    """

    label: str
    settings: tuple[str, ...]
    world: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    paper: tuple[Figures, ...] = ()
    start: Row | None = None

    @property
    def depth(self) -> int:
        """How many runs come before this one's."""
        return 0 if self.start is None else self.start.depth + 1

    @property
    def method(self) -> str:
        """The name of the method that the settings choose."""
        values: dict[str, Any] = {"method": {"name": METHOD_OF_THE_WORLD}}
        for assignment in self.settings:
            set_value(values, assignment)
        entry = values["method"]
        return str(entry if isinstance(entry, str) else entry["name"])


@dataclass(frozen=True)
class Table:
    """Rows that are read together. `reference` is the label of the row that others are compared with in each group.

    `columns`: what is shown of our runs, by the names in `adaptpo.sandbox.tables.text.COLUMNS`. `paper`: whose figures
    stand beside it.
    `view`: how they are shown; None: a line for each.
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


def asked_rows(table: Table, methods: Sequence[str] | None, known: Collection[str]) -> list[Row]:
    """The rows to run: those of `methods`, or all whose method is `known`.

    Raises ConfigError for a method that no row of the table has, or that does not exist.
    """
    if methods is None:
        return [row for row in table.rows if row.method in known]
    present = list(dict.fromkeys(row.method for row in table.rows))
    for name in methods:
        if name not in present:
            raise ConfigError(f"--methods: no row of this table has the method '{name}'; {nearest(name, present)}")
        if name not in known:
            raise ConfigError(f"--methods: the method '{name}' is not available; {nearest(name, list(known))}")
    return [row for row in table.rows if row.method in methods]


def find_table(name: str, tables: Mapping[str, Table]) -> Table:
    """Raises ConfigError that lists the tables where there is none of this name."""
    if name not in tables:
        listed = "\n".join(f"  {key}: {table.title}" for key, table in tables.items())
        raise ConfigError(f"unknown table '{name}'; there are:\n{listed}")
    return tables[name]
