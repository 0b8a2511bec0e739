"""Runs the cells of a table (a row in one world), and names the folders of their worlds and runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adaptpo.config.recipe import load_recipe
from adaptpo.errors import AdaptpoError, RunError
from adaptpo.run.state import read_state
from adaptpo.sandbox.tables.measure import Measurement
from adaptpo.sandbox.tables.processes import Finished, Task, run_tasks
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.statistics import Place
from adaptpo.sandbox.tables.work import align_policy, build_world, open_policy
from adaptpo.sandbox.tables.world import World, folder_of
from adaptpo.trainer import AlignmentTrainer

NOT_PART_OF_A_RUN = ("output_dir", "branch_of", "show_progress")
APART = 1_000_000


@dataclass(frozen=True)
class Cell:
    """A row in one world; `repeat` numbers its runs there, each with a seed of its own."""

    row: Row
    world: World
    repeat: int = 0

    @property
    def place(self) -> Place:
        return self.world.seed, self.repeat

    @property
    def seed(self) -> int:
        """The run's seed: the world's, and for each repetition one that no world has."""
        return self.world.seed + APART * self.repeat

    @property
    def key(self) -> dict[str, Any]:
        """What was run where, JSON-ready and the same on every machine."""
        return {"world": self.world.key, "repeat": self.repeat, **self.row.facts}

    @property
    def start(self) -> Cell | None:
        """The cell whose policy this one starts from; None: the world's own policy."""
        return None if self.row.start is None else replace(self, row=self.row.start)


@dataclass(frozen=True)
class Plan:
    """The folder of a cell's run, the folder of its opening (all before the first iteration, shared with other runs),
    and its settings: those of its row, and the policy of another run if it starts from one."""

    cell: Cell
    run: Path
    opening: Path
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """The result of a cell: its run's folder and measurement, or an error; nothing if it has not been run."""

    cell: Cell
    run: Path | None = None
    measurement: Measurement | None = None
    error: str | None = None

    @property
    def ran(self) -> bool:
        return self.measurement is not None or self.error is not None


def cells_of(rows: Sequence[Row], seeds: Sequence[int], runs: int, world: World) -> list[Cell]:
    """All rows in the worlds of these seeds, which vary `world`, then all again with other seeds of the runs: an
    interrupted table has whole repetitions. Raises ConfigError for impossible settings."""
    return [
        Cell(row, world.varied(seed, row.world), repeat) for repeat in range(runs) for seed in seeds for row in rows
    ]


def settings_of(recipe: Path, cell: Cell) -> tuple[str, ...]:
    """What the world and the row assign to the recipe, and the run's seed.

    Raises ConfigError if the row's settings are invalid.
    """
    return (*cell.world.assignments(recipe, cell.row), f"seed={cell.seed}")


def opening_name(recipe: Path, settings: Sequence[str], out: Path) -> str:
    """A hash of everything before the first iteration."""
    facts = AlignmentTrainer.from_recipe(load_recipe(recipe, (*settings, f"output_dir={out}"))).opening_facts()
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:10]


def run_name(recipe: Path, cell: Cell) -> str:
    """The method, and a hash of the whole resolved recipe and of the run it starts from. Rows with equivalent settings
    share a run.

    Raises ConfigError if the row's settings are invalid.
    """
    values: dict[str, Any] = load_recipe(recipe, settings_of(recipe, cell)).model_dump(mode="json")
    kept = {key: value for key, value in values.items() if key not in NOT_PART_OF_A_RUN}
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False).replace(str(recipe.parent.resolve()), "")
    text += run_name(recipe, cell.start) if cell.start else ""
    return f"{cell.row.method}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def run_cells(cells: Sequence[Cell], out: Path, jobs: int) -> list[Outcome]:
    """Builds the worlds, aligns the policies and measures them; skips what exists already."""
    rows = [cell.row for cell in cells]
    worlds = {cell.world.name: Task(build_world, (cell.world, out, rows)) for cell in cells}
    errors = work_off("world", worlds, jobs)
    for wave in waves(cells):
        plans = [planned(cell, out, errors) for cell in wave]
        ready = [plan for plan in plans if isinstance(plan, Plan)]
        errors |= run_openings(ready, out, jobs)
        errors |= run_plans(ready, out, jobs)
    return [concluded(planned(cell, out, errors), out, errors) for cell in cells]


def finished_cells(cells: Sequence[Cell], out: Path) -> list[Outcome]:
    """Measures the runs that have finished, and runs nothing."""
    return [finished_cell(cell, out) for cell in cells]


def finished_cell(cell: Cell, out: Path) -> Outcome:
    if not recipe_of(out, cell).exists():
        return Outcome(cell)
    plan = planned(cell, out, {})
    finished = isinstance(plan, Plan) and (plan.run / "final").is_dir()
    return concluded(plan, out, {}) if finished else Outcome(cell)


def waves(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """The cells and those they start from, requested or not, each after the one it starts from."""
    everything = [each for cell in cells for each in lineage(cell)]
    for depth in sorted({cell.row.depth for cell in everything}):
        yield [cell for cell in everything if cell.row.depth == depth]


def lineage(cell: Cell) -> Iterator[Cell]:
    """The cells that this one starts from, earliest first, and the cell itself."""
    if cell.start is not None:
        yield from lineage(cell.start)
    yield cell


def planned(cell: Cell, out: Path, errors: dict[str, str]) -> Plan | Outcome:
    """The cell with the folders of its run, or with the reason why it cannot run."""
    name = cell.world.name
    if name in errors:
        return Outcome(cell, error=f"its world was not built: {errors[name]}")
    recipe = recipe_of(out, cell)
    try:
        run, settings = run_of(out, cell), (*settings_of(recipe, cell), *starting_policy(out, cell))
        return Plan(cell, run, out / "openings" / name / opening_name(recipe, settings, run), settings)
    except AdaptpoError as error:
        return Outcome(cell, error=str(error))


def starting_policy(out: Path, cell: Cell) -> tuple[str, ...]:
    """The policy of the run that a cell starts from, as a setting. Raises RunError if that run has not finished."""
    if cell.start is None:
        return ()
    run, row = run_of(out, cell.start), cell.start.row
    if not (run / "final").is_dir():
        name = ", ".join(filter(None, (row.group, row.label)))
        raise RunError(f"the run that it starts from did not finish: {name}; fix that one first")
    return (f"model={(run / 'final').resolve()}",)


def recipe_of(out: Path, cell: Cell) -> Path:
    return folder_of(out, cell.world) / "recipe.yaml"


def run_of(out: Path, cell: Cell) -> Path:
    """The folder of a cell's run. Raises ConfigError if the row's settings are invalid."""
    return out / "runs" / cell.world.name / run_name(recipe_of(out, cell), cell)


def start_of(out: Path, cell: Cell) -> Path | None:
    """The folder of the run that a cell starts from, if there is one."""
    return None if cell.start is None else run_of(out, cell.start)


def run_openings(plans: Sequence[Plan], out: Path, jobs: int) -> dict[str, str]:
    """Runs everything before the first iteration, once for all runs that share it; returns errors by folder."""
    tasks = {}
    for plan in plans:
        if not any(read_state(folder).get("opened") for folder in (plan.run, plan.opening)):
            settings = (*plan.settings, f"output_dir={plan.opening}", "show_progress=false")
            tasks[str(plan.opening.relative_to(out))] = Task(open_policy, (recipe_of(out, plan.cell), settings))
    return work_off("opening", tasks, jobs)


def run_plans(plans: Sequence[Plan], out: Path, jobs: int) -> dict[str, str]:
    """Runs the iterations; returns errors by folder."""
    tasks = {}
    for plan in plans:
        places = (f"output_dir={plan.run}", f"branch_of={plan.opening}")
        settings = (*plan.settings, *places, "show_progress=false")
        task = (recipe_of(out, plan.cell), settings, plan.cell.world, out, plan.run)
        tasks[str(plan.run.relative_to(out))] = Task(align_policy, task)
    by_name = {str(plan.run.relative_to(out)): plan for plan in plans}
    return work_off("run", tasks, jobs, lambda name: measured_line(out, by_name[name]))


def concluded(plan: Plan | Outcome, out: Path, errors: dict[str, str]) -> Outcome:
    """The outcome with its measurement, or with the first error."""
    if isinstance(plan, Outcome):
        return plan
    found = [errors.get(str(folder.relative_to(out))) for folder in (plan.opening, plan.run)]
    if error := found[0] or found[1]:
        return Outcome(plan.cell, plan.run, error=error)
    try:
        return Outcome(plan.cell, plan.run, measured(out, plan))
    except AdaptpoError as problem:
        return Outcome(plan.cell, plan.run, error=str(problem))


def work_off(
    kind: str, tasks: dict[str, Task], jobs: int, detail: Callable[[str], str] = lambda name: ""
) -> dict[str, str]:
    """Runs named tasks and prints a line for each; returns the errors of those that failed."""
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


def measured(out: Path, plan: Plan) -> Measurement:
    return plan.cell.world.measure(out, plan.run, start_of(out, plan.cell))


def measured_line(out: Path, plan: Plan) -> str:
    """The cell's main figures, for the terminal."""
    try:
        found = measured(out, plan)
    except AdaptpoError as error:
        return f"cannot be measured: {error}"
    name = plan.cell.world.score.name
    return f"{name} {found.true_reward:.3f}, {found.annotated:.0%} of the prompts annotated"
