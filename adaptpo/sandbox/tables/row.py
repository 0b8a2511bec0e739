"""One row of a table: a setting that is run in every world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptpo.config.recipe import set_value
from adaptpo.sandbox.tables.papers import Figures

METHOD_OF_THE_WORLD = "metaapo"


@dataclass(frozen=True)
class Row:
    """One setting that is run in every world.

    `settings`: assignments to the world's recipe, as `adaptpo train --set` takes them; `method.name=X` keeps the
    recipe's objective (DPO with the world's beta), `method=X` takes the method's own. `world`: settings in which this
    row's worlds differ from the table's. Rows of one `group` are compared with the group's reference. `start`: the row
    whose run, in the same world, produces the policy that this one starts from; None: the world's own policy. `epochs`:
    optimizer steps of each iteration, in epochs over all its prompts, however many of them the row trains on; None: as
    many as the settings give.
    """

    label: str
    settings: tuple[str, ...]
    world: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    paper: tuple[Figures, ...] = ()
    start: Row | None = None
    epochs: float | None = None

    @property
    def depth(self) -> int:
        """Number of runs that come before this one's."""
        return 0 if self.start is None else self.start.depth + 1

    @property
    def facts(self) -> dict[str, Any]:
        """What a run of this row depends on besides its world: equal for equal runs, whatever their label."""
        start = None if self.start is None else self.start.facts
        return {"settings": list(self.settings), "epochs": self.epochs, "start": start}

    @property
    def method(self) -> str:
        """The name of the method that the settings choose."""
        values: dict[str, Any] = {"method": {"name": METHOD_OF_THE_WORLD}}
        for assignment in self.settings:
            set_value(values, assignment)
        entry = values["method"]
        return str(entry if isinstance(entry, str) else entry["name"])
