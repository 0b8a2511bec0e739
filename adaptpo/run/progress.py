"""What a run shows on the terminal: a bar for the current phase, one line for each finished phase."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SHOWN = {
    "kept": "{} pairs kept",
    "dropped": "{} left out (see dropped.jsonl)",
    "truncated": "{} cut at the length limit",
    "prompts": "{} prompts",
    "selected": "{} selected",
    "prompts_alone": "{} prompts without an offline pair",
    "responses": "{} responses",
    "annotated": "{} annotated",
    "invalid": "{} without a valid reward",
    "annotation/requests": "{} requests",
    "annotation/prompt_tokens": "{} prompt tokens",
    "annotation/completion_tokens": "{} completion tokens",
    "annotation/invalid": "{} invalid verdicts",
    "missing": "{} responses missing (see dropped.jsonl)",
    "pairs": "{} pairs",
    "rollouts": "{} rollouts",
    "no_pair": "{} prompts without a pair",
    "too_long": "{} too long for the reward model",
    "rows": "{} rows",
    "reason": "{}",
    "steps": "{} steps",
    "reward_mean": "mean reward {:.3f}",
    "kl_mean": "KL {:.3f} nats",
    "measured": "{} prompts measured",
    "unanswered": "{} prompts without four comparisons",
    "boundary_score": "boundary score {:.3f}",
    "decision": "{}",
    "score_mean": "mean score {:.3f}",
    "reward/mean": "reward {:.3f}",
    "win_rate": "win rate {:.1%}",
}


def say(text: str, visible: bool) -> None:
    if visible:
        tqdm.write(text)


def caution(text: str, is_first: bool) -> None:
    """A warning, which is shown even where progress is not."""
    if is_first:
        tqdm.write(f"warning: {text}", file=sys.stderr)


def announce(phase: str, facts: dict[str, Any], visible: bool) -> None:
    say(f"{phase}: {describe(facts)}", visible)
    if phase.endswith("/train"):
        for warning in warnings(facts):
            say(f"  warning: {warning}", visible)


def warnings(facts: dict[str, Any]) -> list[str]:
    """Warnings about a finished iteration that trained nothing, or did not update a learner."""
    if facts["prompts"] == 0:
        return ["no prompt had anything to train on, so the policy is unchanged; dropped.jsonl has the reasons"]
    idle = [title for title, count in facts.get("learner_updates", {}).items() if not count]
    return [f"{title} was not updated" for title in idle]


def describe(facts: dict[str, Any]) -> str:
    """The known nonzero counts of a phase, and its duration in seconds."""
    shown = [text.format(facts[name]) for name, text in SHOWN.items() if facts.get(name)]
    return ", ".join([*shown, f"{facts['seconds']:.1f} s"])


def progress_bar(phase: str, total: int, unit: str, visible: bool, done: int = 0) -> tqdm:
    return tqdm(total=total, desc=phase, unit=unit, initial=done, disable=not visible, leave=False, dynamic_ncols=True)
