"""The README of an aligned model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptpo.config.version import __version__
from adaptpo.pipeline.context import Context

Facts = Mapping[str, Mapping[str, Any]]
"""What each phase reported, by its name."""

MEASURED = {
    "reward/mean": ("reward", "{:.3f}"),
    "win_rate": ("win rate", "{:.1%}"),
    "length/mean": ("tokens", "{:.1f}"),
    "eval_loss": ("loss", "{:.4f}"),
    "eval_rewards/accuracies": ("pairs ranked correctly", "{:.1%}"),
}
"""What a held-out evaluation reports, with its heading and format."""


def model_card(context: Context) -> str:
    phases = context.run.state["phases"]
    choices = "\n".join(f"- {axis}: `{choice}`" for axis, choice in context.method.choices().items())
    trainer = "" if context.method.trainer.uses_pairs else f"\n- trainer: `{context.method.trainer!r}`"
    # The hub takes no other base than one of its own models.
    base = "" if Path(context.initial).exists() else f"base_model: {context.initial}\n"
    return f"""---
library_name: {"peft" if context.config.peft is not None else "transformers"}
{base}tags: [adaptpo, preference-optimization, {context.method.name}]
---

# Aligned with {context.method.name}

Trained from `{context.initial}` with adaptpo {__version__} in {context.config.num_iterations} iterations on
{context.data.description}.

The method's four choices:

{choices}{trainer}

{data_sentence(phases)}
{held_out_table(phases)}
The run directory (`config.yaml`, `metrics.jsonl`) holds every setting and metric.
"""


def data_sentence(phases: Facts) -> str:
    """How much data went in, and how much was generated for it."""
    data = phases.get("data", {})
    responses = total(phases, "/generate", "responses")
    fresh = (
        f" {responses:,} responses were generated and {total(phases, '/annotate', 'annotated'):,} of them annotated."
    )
    rows = f"{data.get('kept', 0):,} rows of the data were used and {data.get('dropped', 0):,} left out."
    return rows + (fresh if responses else "")


def total(phases: Facts, ending: str, name: str) -> int:
    return sum(facts.get(name, 0) for phase, facts in phases.items() if phase.endswith(ending))


def held_out_table(phases: Facts) -> str:
    """The held-out evaluations as a Markdown table; empty if there are none."""
    stages = {name.removeprefix("evaluate/"): facts for name, facts in phases.items() if name.startswith("evaluate/")}
    known = [metric for metric in MEASURED if any(metric in facts for facts in stages.values())]
    return "\n".join(["", *table_lines(stages, known), ""]) if known else ""


def table_lines(stages: Facts, known: list[str]) -> Iterator[str]:
    yield "| held-out prompts | " + " | ".join(MEASURED[metric][0] for metric in known) + " |"
    yield "|---|" + "---|" * len(known)
    for stage, facts in stages.items():
        cells = (MEASURED[m][1].format(facts[m]) if m in facts else "" for m in known)
        yield f"| {stage} | " + " | ".join(cells) + " |"
