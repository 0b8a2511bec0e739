"""The cells of a table (a row in one world), where their worlds and runs lie, and running them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adaptpo.config import load_recipe
from adaptpo.errors import AdaptpoError, ConfigError
from adaptpo.sandbox.settings import WorldSettings
from adaptpo.sandbox.tables.measure import Measurement, measure
from adaptpo.sandbox.tables.processes import Finished, Task, run_tasks
from adaptpo.sandbox.tables.rows import Row
from adaptpo.sandbox.tables.work import align_policy, build_world

NOT_PART_OF_A_RUN = ("output_dir", "show_progress")


@dataclass(frozen=True)
class Cell:
    row: Row
    seed: int
    world: WorldSettings


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: its run's folder and measurement, or an error."""

    cell: Cell
    run: Path | None = None
    measurement: Measurement | None = None
    error: str | None = None


def cells_of(rows: Sequence[Row], seeds: int, prompts: int) -> list[Cell]:
    """All rows in the world of seed 0, then of seed 1, and so on. Raises ConfigError for a world that cannot be."""
    return [
        Cell(row, seed, WorldSettings(**{"prompts": prompts, **row.world, "seed": seed}))
        for seed in range(seeds)
        for row in rows
    ]


def world_name(world: WorldSettings) -> str:
    """For instance `prompts-3000/seed-0`, or `prompts-3000_flipped-0.2/seed-0`: what differs from the defaults."""
    others = [each for each in fields(world) if each.name not in ("prompts", "seed") and each.default is not MISSING]
    changed = [
        f"_{each.name}-{getattr(world, each.name)}" for each in others if getattr(world, each.name) != each.default
    ]
    return f"prompts-{world.prompts}{''.join(changed)}/seed-{world.seed}"


def run_name(recipe: Path, row: Row) -> str:
    """The method and a hash of the whole resolved recipe: rows that say the same in other words share a run.

    Raises ConfigError where the row's settings are none.
    """
    values: dict[str, Any] = load_recipe(recipe, row.settings).model_dump(mode="json")
    kept = {key: value for key, value in values.items() if key not in NOT_PART_OF_A_RUN}
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False).replace(str(recipe.parent.resolve()), "")
    return f"{row.method}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def run_cells(cells: Sequence[Cell], out: Path, jobs: int) -> list[Outcome]:
    """Builds the worlds, aligns the policies and measures them; what is there already is not done again."""
    worlds = {world_name(cell.world): cell.world for cell in cells}
    errors = work_off("world", {name: world_task(out, name, world) for name, world in worlds.items()}, jobs)
    outcomes = [planned(cell, out, errors) for cell in cells]
    runs = {str(o.run.relative_to(out / "runs")): run_task(out, o) for o in outcomes if o.run is not None}
    errors = work_off("run", runs, jobs, lambda name: measured_line(out / "runs" / name))
    return [concluded(outcome, out, errors) for outcome in outcomes]


def world_task(out: Path, name: str, world: WorldSettings) -> Task:
    return Task(build_world, (out / "worlds" / name, world))


def planned(cell: Cell, out: Path, world_errors: dict[str, str]) -> Outcome:
    """The cell with the folder of its run, or with why it cannot run."""
    name = world_name(cell.world)
    if name in world_errors:
        return Outcome(cell, error=f"its world was not built: {world_errors[name]}")
    try:
        run = run_name(out / "worlds" / name / "recipe.yaml", cell.row)
    except ConfigError as error:
        return Outcome(cell, error=str(error))
    return Outcome(cell, out / "runs" / name / run)


def run_task(out: Path, outcome: Outcome) -> Task:
    recipe = out / "worlds" / world_name(outcome.cell.world) / "recipe.yaml"
    return Task(
        align_policy, (recipe, (*outcome.cell.row.settings, f"output_dir={outcome.run}", "show_progress=false"))
    )


def concluded(outcome: Outcome, out: Path, run_errors: dict[str, str]) -> Outcome:
    """The outcome with its measurement, or with what went wrong."""
    if outcome.run is None:
        return outcome
    error = run_errors.get(str(outcome.run.relative_to(out / "runs")))
    if error is None:
        try:
            return Outcome(outcome.cell, outcome.run, measure(outcome.run))
        except AdaptpoError as problem:
            error = str(problem)
    return Outcome(outcome.cell, outcome.run, error=error)


def work_off(
    kind: str, tasks: dict[str, Task], jobs: int, detail: Callable[[str], str] = lambda name: ""
) -> dict[str, str]:
    """Run named tasks, one line for each; returns the errors of those that failed."""
    names, errors = list(tasks), {}
    bar = tqdm(total=len(tasks), desc=f"{kind}s", unit=kind, leave=False, dynamic_ncols=True)
    with bar, closing(run_tasks(list(tasks.values()), jobs)) as ended:
        for finished in ended:
            name = names[finished.number]
            if finished.error is not None:
                errors[name] = finished.error
            bar.update()
            tqdm.write(line(f"{kind} {bar.n}/{len(tasks)}", name, finished, detail))
    return errors


def line(place: str, name: str, finished: Finished, detail: Callable[[str], str]) -> str:
    outcome = detail(name) if finished.error is None else f"failed: {finished.error}"
    return f"{place}  {name}  {finished.seconds:.0f} s  {outcome}".rstrip()


def measured_line(run: Path) -> str:
    """For the terminal: the cell's main figures."""
    try:
        found = measure(run)
    except AdaptpoError as error:
        return f"cannot be measured: {error}"
    return f"true reward {found.true_reward:.3f}, {found.annotated:.0%} of the prompts annotated"
