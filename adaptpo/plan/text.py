"""Prints a plan on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from adaptpo.plan.against import Comparison, ShareOfWork
from adaptpo.plan.decoding import engine_of
from adaptpo.plan.estimate import Cost, Plan
from adaptpo.plan.job import Job
from adaptpo.plan.machines import Machine
from adaptpo.plan.memory import Line
from adaptpo.plan.rates import Assumption

WIDTH_WITHOUT_TERMINAL = 160


def show_plan(plan: Plan) -> None:
    console = terminal()
    show_facts(console, plan)
    show_assumptions(console, plan.assumptions)
    console.print(phase_table(plan))
    console.print("How tokens and time are computed", style="bold")
    for cost in plan.costs:
        show_arithmetic(console, cost)
    show_lines(console, "Memory of one accelerator", plan.memory, plan.machine)
    show_lines(console, "Disk", plan.disk)
    for note in plan.notes:
        console.print(f"- {note}", highlight=False)


def terminal() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_WITHOUT_TERMINAL)


def plain(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def show_facts(console: Console, plan: Plan) -> None:
    job, machine, shape = plan.job, plan.machine, plan.job.shape
    data, trained = job.data, f", {shape.trained:,} of them trained" if shape.trained < shape.parameters else ""
    plain(
        console, f"model    {shape.parameters:,} parameters{trained}; {shape.layers} layers, hidden size {shape.hidden}"
    )
    lengths = (data.prompt.mean(), data.chosen.mean(), data.rejected.mean())
    means = "prompt {:.1f}, chosen {:.1f}, rejected {:.1f}".format(*lengths)
    what = "pairs" if data.has_pairs else "prompts without a pair"
    plain(console, f"data     {data.pairs:,} {what} of {data.rows:,} rows; mean tokens of {data.sampled:,}: {means}")
    if alone := data.alone:
        plain(console, f"         {alone.pairs:,} prompts without a pair; mean tokens {alone.prompt.mean():.1f}")
    for name, rows in data.sets.items():
        plain(console, f"         {name}: {rows:,} rows ({rows / data.rows:.1%})")
    plain(console, f"method   {job.method.name}, {job.iterations} iterations of {job.part:,.0f} prompts")
    for share, count in Counter(plan.shares).items():
        told = f"{share.value:.0%} of the prompts get fresh responses in {count} iterations ({share.why})"
        plain(console, f"         {told}")
    plain(console, f"machine  {described(machine, job)}")


def described(machine: Machine, job: Job) -> str:
    return (
        f"{machine.name}: {machine.count} x ({machine.tflops:g} TFLOP/s, {machine.memory_gb:g} GB, "
        f"{machine.bandwidth_gb:g} GB/s), engine {engine_of(job, machine)}"
    )


def show_assumptions(console: Console, assumptions: Sequence[Assumption]) -> None:
    console.print("Assumptions", style="bold")
    for one in assumptions:
        value = f"{one.value:.0%}" if one.value <= 1 else f"{one.value:,.1f}"
        plain(console, f"  {one.name}: {value} {one.meaning} ({one.source})")


def phase_table(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("phase", "tokens", "FLOP", "share", "hours", "responses", "annotations", "calls"):
        table.add_column(title, justify="left" if title == "phase" else "right", no_wrap=True)
    operations = plan.total("operations") or 1.0
    for cost in plan.costs:
        counts = (cost.responses, cost.annotations, cost.calls)
        share = f"{cost.operations / operations:.1%}"
        row = (cost.name, f"{cost.tokens:,.0f}", f"{cost.operations:.3g}", share, hours(cost.seconds))
        table.add_row(*row, *(f"{count:,.0f}" if count else "" for count in counts))
    table.add_section()
    totals = tuple(f"{plan.total(name):,.0f}" for name in ("responses", "annotations", "calls"))
    tokens, seconds = f"{plan.total('tokens'):,.0f}", plan.total("seconds")
    table.add_row("all", tokens, f"{operations:.3g}", "", hours(seconds), *totals, style="bold")
    gpu = plan.hours * plan.machine.count
    table.caption = f"{plan.hours:.2f} hours, {gpu:.1f} accelerator hours"
    return table


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f}" if seconds >= 36 else f"{seconds / 3600:.1g}"


def show_arithmetic(console: Console, cost: Cost) -> None:
    for formula, count in Counter(cost.formulas).items():
        times = f"{count} x " if count > 1 else ""
        plain(console, f"  {cost.name}: {times}[{formula}]")
    plain(console, f"      {cost.tokens:,.0f} tokens; {cost.arithmetic} = {cost.seconds:,.1f} s")


def show_lines(console: Console, title: str, lines: Sequence[Line], machine: Machine | None = None) -> None:
    console.print(title, style="bold")
    for line in lines:
        over = " (more than the accelerator has)" if machine and line.gigabytes > machine.memory_gb else ""
        plain(console, f"  {line.name}: {line.formula} = {line.gigabytes:,.3g} GB{over}")


def show_comparison(comparisons: Sequence[Comparison], shares: Sequence[ShareOfWork]) -> None:
    console = terminal()
    console.print(counts_table(comparisons))
    console.print(shares_table(shares))


def counts_table(comparisons: Sequence[Comparison]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="Counts", title_justify="left")
    table.add_column("")
    for title in ("planned", "with the run's share and lengths", "measured"):
        table.add_column(title, justify="right")
    for one in comparisons:
        table.add_row(one.name, f"{one.planned:,.1f}", f"{one.informed:,.1f}", f"{one.measured:,.1f}")
    return table


def shares_table(shares: Sequence[ShareOfWork]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="Shares of the work", title_justify="left")
    table.add_column("phase")
    for title in ("FLOP, planned", "time, planned", "CPU time, measured"):
        table.add_column(title, justify="right")
    for one in shares:
        table.add_row(one.name, f"{one.operations:.1%}", f"{one.seconds:.1%}", f"{one.measured:.1%}")
    return table
