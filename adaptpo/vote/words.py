"""The results on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

SHOWN = 10
EXCERPT = 70


def show_results(found: Mapping[str, Any]) -> None:
    console = Console()
    for label, source in found["responses"].items():
        console.print(f"[bold]{label}[/bold] {escape(source)}", highlight=False, soft_wrap=True)
    summary = found["summary"]
    if summary is None:
        console.print(f"\nNo votes yet ({found['skipped']:,} skipped).", highlight=False)
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for label, value in [*shares(summary), *facts(found)]:
        table.add_row(label, escape(value))
    console.print()
    console.print(table, highlight=False)
    for line in [*warnings(summary), *disagreement_lines(summary)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def shares(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "A wins", share(summary["win"])
    ties = f"{share(summary['tie'])}; {summary['both_bad']:,} of {summary['votes']:,} votes: both bad"
    yield "tie", ties if summary["both_bad"] else share(summary["tie"])
    yield "B wins", share(summary["loss"])
    yield "A's score", f"{share(summary['score'])} (a tie is half a win)"


def share(found: Mapping[str, float]) -> str:
    return f"{found['mean']:6.1%}  [{found['low']:.1%}, {found['high']:.1%}]"


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    summary = found["summary"]
    voters, prompts = several(summary["voters"], "voter"), several(summary["prompts"], "prompt")
    yield "votes", f"{summary['votes']:,} by {voters} on {prompts}"
    yield "not counted", f"{found['skipped']:,} skipped, {found['undone']:,} undone"
    yield "interval", f"{found['level']:.0%}, {summary['interval']}"
    yield "left side", "only ties" if summary["left"] is None else f"{share(summary['left'])} of the wins"
    yield "agreement", agreement(summary)
    if summary["median_seconds"] is not None:
        yield "median time", f"{summary['median_seconds']:.1f} s a vote"
    yield "hidden names", f"in the responses of {several(found['with_hidden_names'], 'vote')}"
    yield "left out", counts_in_words(found["left_out"])


def agreement(summary: Mapping[str, Any]) -> str:
    if summary["alpha"] is None:
        return "unknown: it takes two voters on the same prompts who do not all vote alike"
    return f"Krippendorff's alpha {summary['alpha']:.2f} (1: full agreement, 0: as by chance)"


def warnings(summary: Mapping[str, Any]) -> Iterator[str]:
    left = summary["left"]
    if left is not None and not left["low"] <= 0.5 <= left["high"]:
        side = "left" if left["mean"] > 0.5 else "right"
        yield f"\nVoters favour the {side} side. Sides are balanced, so this pulls both runs toward a score of 50 %."


def disagreement_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    found = summary["disagreements"]
    if found:
        yield f"\nVoters disagree on {len(found):,} of {summary['prompts']:,} prompts:"
    for item in found[:SHOWN]:
        votes = ", ".join(f"{voter} {vote}" for voter, vote in item["votes"].items())
        yield f"  {excerpt(item['prompt'])}  ({votes})"
    if len(found) > SHOWN:
        yield f"  and {len(found) - SHOWN:,} more; --json lists all"


def several(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def excerpt(prompt: str) -> str:
    text = " ".join(prompt.split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def counts_in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "nothing"
