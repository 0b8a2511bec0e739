"""The result of a measurement in words, for the terminal and for the page."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from adaptpo.stage.score import ADVICE
from adaptpo.types import Row


def headline(found: Row) -> str:
    return ADVICE[found["decision"]]


def interval(found: Row) -> str:
    low, high = found["interval"]
    return f"{found['score']:.3f}, 95 % interval {low:.3f} to {high:.3f}"


def how_to_decide(found: Row) -> str | None:
    """A sentence on how many prompts an undecided measurement would need; None if it is decided."""
    if found["decision"] != "undecided":
        return None
    needed = found["prompts_to_decide"]
    if needed is None:
        return "the score is exactly 0.5; if it stays there, no number of prompts would decide it"
    return f"about {needed:,} prompts would decide it if the score stays the same"


def facts(found: Row) -> dict[str, str]:
    """Label and value of each line below the headline."""
    cost, ties = found["cost"], found["ties"]
    compared = 4 * found["prompts"]
    rows = {
        "boundary score": interval(found),
        "won by the policy": f"{found['v_on']:,.1f} of {compared:,} comparisons; {ties:,} ties, half to each side",
        "prompts": f"{found['prompts']:,} measured, {found['unanswered_prompts']:,} left out (see dropped.jsonl)",
        "cost": f"{cost['responses']:,} responses, {cost['tokens']:,} tokens, {sum(cost['seconds'].values()):,.0f} s",
    }
    needed = how_to_decide(found)
    return rows | ({"to decide": needed} if needed else {}) | readings(found["diagnostics"])


def readings(diagnostics: Row) -> dict[str, str]:
    if not diagnostics:
        return {}
    longer = diagnostics["longer_wins"]
    lengths = f"{diagnostics['fresh_tokens']:.0f} tokens fresh, {diagnostics['chosen_tokens']:.0f} chosen"
    rows = {
        "quality": f"{share(diagnostics['quality_against_chosen'])} of comparisons won against chosen responses, "
        f"{share(diagnostics['quality_against_rejected'])} against rejected ones",
        "intra-diversity": f"log-probs differ by {diagnostics['offline_distance']:.1f} nats in an offline pair, by "
        f"{diagnostics['fresh_distance']:.1f} between fresh responses",
        "distinctness": f"{diagnostics['distinctness']:.1%} of comparisons: the policy finds its own response likelier",
        "lengths": f"{lengths}, {diagnostics['rejected_tokens']:.0f} rejected",
    }
    if longer["share"] is not None:
        rows["longer response"] = (
            f"won {longer['share']:.1%} of {longer['comparisons']:,} comparisons of unequal length"
        )
    return rows


def share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def print_found(found: Row) -> None:
    console = Console()
    console.print(f"\n[bold]{headline(found)}[/bold]\n", highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for label, value in facts(found).items():
        table.add_row(label, value)
    console.print(table, highlight=False)
