"""How the papers and the benchmarks evaluate: judge, baseline, decoding and the columns of their tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptpo.config.base import nearest
from adaptpo.errors import ConfigError

NOT_SAID = "not said in the paper"
CONTRADICTS = (
    "MetaAPO contradicts itself on Arena-Hard's baseline: section 5.1 names GPT-4-Preview-1106, appendix B.2 names "
    "GPT-4-0314, and scores against them are not comparable; name the baseline that you mean with --baseline"
)


@dataclass(frozen=True)
class Protocol:
    """One suite as somebody runs it. `decoding` are keys of `generation`; `columns` are numbers of the result;
    `baseline` None: the user has to decide, for the reason in `note`."""

    suite: str
    judge: str
    baseline: str | None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    note: str = ""


GREEDY = {"temperature": 0.0}
LC, WR = "length-controlled win rate", "win rate"
TURBO = "gpt-4-1106-preview"
ALPACA = Protocol("alpaca_eval_2", TURBO, "gpt4_1106_preview", {"max_new_tokens": 2048}, (LC, WR, "standard error"))
ARENA = Protocol(
    "arena_hard_v0.1", TURBO, "gpt-4-0314", GREEDY | {"max_new_tokens": 4096}, ("score", "style control", "equal style")
)
ARENA_2 = Protocol(
    "arena_hard_v2",
    "gpt-4.1",
    "o3-mini-2025-01-31 for hard prompts, gemini-2.0-flash-001 for creative writing",
    GREEDY | {"max_new_tokens": 16000},
    ("hard_prompt", "creative_writing"),
    "categories have baselines of their own: read their scores, not the mean over both",
)
MT_BENCH = Protocol("mt_bench", "gpt-4", "none", {"max_new_tokens": 1024}, ("score", "turn 1", "turn 2"))
REFUSALS = ("safe prompts refused, judge", "unsafe prompts refused, judge")
XSTEST = Protocol("xstest", "gpt-4", "none", GREEDY | {"max_new_tokens": 512}, REFUSALS)
LONG = {"max_new_tokens": 4096}
LATEST = "chatgpt-4o-latest"

PRESETS: dict[str, tuple[Protocol, ...]] = {
    "alpaca_eval_2": (ALPACA,),
    "arena_hard_v0.1": (ARENA,),
    "arena_hard_v2": (ARENA_2,),
    "mt_bench": (MT_BENCH,),
    "xstest": (XSTEST,),
    "metaapo": (
        Protocol("alpaca_eval_2", LATEST, "gpt-4o-2024-05-13", LONG, (WR, LC)),
        Protocol("arena_hard_v0.1", LATEST, None, GREEDY | LONG, ("score", "style control"), CONTRADICTS),
        Protocol("mt_bench", LATEST, "none", LONG, ("score",)),
    ),
    "metapo": (
        Protocol("alpaca_eval_2", TURBO, "gpt4_1106_preview", {}, (WR, LC), f"judge and decoding: {NOT_SAID}"),
        Protocol("arena_hard_v0.1", TURBO, "gpt-4-0314", GREEDY, ("score",), f"judge and decoding: {NOT_SAID}"),
        Protocol("mt_bench", "gpt-4", "none", {}, ("score",), f"judge: {NOT_SAID}"),
    ),
    "stages": (
        Protocol("alpaca_eval_2", TURBO, "gpt4_1106_preview", {"temperature": 0.7, "top_p": 0.9, "top_k": 50}, (LC,)),
    ),
}
"""MetaAPO: section 5.1 and appendix B.2. MetaPO: section 4.1; its refusal rates are on 200 prompts of BeaverTails,
which XSTest does not hold. Stages: section 4.1 and table 7."""


def protocols(name: str) -> tuple[Protocol, ...]:
    """Raises ConfigError for an unknown name, with the nearest one."""
    if name not in PRESETS:
        raise ConfigError(f"there is no preset '{name}'; {nearest(name, list(PRESETS))}")
    return PRESETS[name]


def protocol(preset: str, suite: str) -> Protocol:
    """A preset's way with one suite. Raises ConfigError where the preset does not run it."""
    found = next((one for one in protocols(preset) if one.suite == suite), None)
    if found is None:
        known = ", ".join(one.suite for one in protocols(preset))
        raise ConfigError(f"preset '{preset}' does not run {suite}; it runs {known}")
    return found
