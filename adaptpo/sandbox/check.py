"""Checks whether training can be measured in a world. If a check fails, fix the world, not the check."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev

from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptpo.annotation.reward_model import RewardModelAnnotator, load_reward_model
from adaptpo.config.recipe import load_recipe
from adaptpo.errors import RunError
from adaptpo.run.files import read_rows
from adaptpo.sandbox.sampling import sample_responses
from adaptpo.sandbox.world import plain_text, true_reward, user
from adaptpo.trainer import AlignmentTrainer
from adaptpo.types import Prompt, Response

AGREEMENT = 0.75
EXTREMES = 0.9
ROOM = 0.2
RESPONSES = 8


@dataclass(frozen=True)
class Check:
    """`passed` means that `value` is at least `threshold`."""

    name: str
    value: float
    threshold: float

    @property
    def passed(self) -> bool:
        return self.value >= self.threshold


def check(folder: Path) -> list[Check]:
    """All checks of the world in `folder`. Trains `dpo` and `online_dpo` in `folder/check`, and resumes there.

    Raises RunError if `folder` holds no world.
    """
    if not (folder / "world.json").exists():
        raise RunError(f"{folder} holds no sandbox; build one with: adaptpo sandbox build --out {folder}")
    return [*reward_model_checks(folder), *training_checks(folder)]


def reward_model_checks(folder: Path) -> list[Check]:
    """Checks of the reward model on the SFT policy's responses to held-out prompts, and of the headroom above it."""
    prompts, responses = policy_responses(folder)
    true = [true_reward([prompt] * RESPONSES, group) for prompt, group in zip(prompts, responses, strict=True)]
    predicted = learned_rewards(folder, prompts, responses)
    pairs = [pair for t, p in zip(true, predicted, strict=True) for pair in agreements(t, p)]
    extremes = [pair for t, p in zip(true, predicted, strict=True) for pair in best_above_worst(t, p)]
    mean = fmean(reward for group in true for reward in group)
    return [
        Check("reward model agrees with the true reward about on-policy pairs", share(pairs), AGREEMENT),
        Check(f"its best of {RESPONSES} responses has a higher true reward than its worst", share(extremes), EXTREMES),
        Check("headroom above the SFT policy (1 - its true reward)", 1 - mean, ROOM),
    ]


def policy_responses(folder: Path) -> tuple[list[str], list[list[str]]]:
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    prompts = heldout_prompts(folder)
    return prompts, sample_responses(model, tokenizer, prompts, RESPONSES, seed=1)


def heldout_prompts(folder: Path) -> list[str]:
    lines = (folder / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [plain_text(json.loads(line)["prompt"]) for line in lines]


def learned_rewards(folder: Path, prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> list[list[float]]:
    """The reward of each of the responses to each prompt by a world's reward model; NaN without one."""
    annotator = RewardModelAnnotator(*load_reward_model(str(folder / "reward_model"), {}))
    requests = [
        (Prompt(number, user(prompt), []), Response(text, []))
        for number, (prompt, group) in enumerate(zip(prompts, responses, strict=True))
        for text in group
    ]
    rewards = iter(annotator.rewards(requests))
    return [[float("nan") if (reward := next(rewards)) is None else reward for _ in group] for group in responses]


def agreements(true: Sequence[float], predicted: Sequence[float]) -> list[float]:
    """1 for each pair that both rewards order the same way, else 0; pairs of equal true reward do not count."""
    return [
        float((true[i] > true[j]) == (predicted[i] > predicted[j]))
        for i, j in combinations(range(len(true)), 2)
        if true[i] != true[j]
    ]


def best_above_worst(true: Sequence[float], predicted: Sequence[float]) -> list[float]:
    """[1] if the response with the highest predicted reward is truly better than the lowest, else [0]; [] for a tie."""
    order = sorted(range(len(predicted)), key=predicted.__getitem__)
    worst, best = true[order[0]], true[order[-1]]
    return [] if best == worst else [float(best > worst)]


def share(outcomes: Sequence[float]) -> float:
    """The mean outcome; 0 if nothing could be compared."""
    return fmean(outcomes) if outcomes else 0.0


def training_checks(folder: Path) -> list[Check]:
    """Checks of differences in true reward on the same held-out prompts; each must reach two standard errors."""
    offline = trained(folder, "dpo")
    online = trained(folder, "online_dpo")
    initial, warmup = (stage_rewards(online, stage) for stage in ("initial", "warmup"))
    last = sorted(path.stem for path in (online / "evaluation").glob("iteration-*.parquet"))[-1]
    return [
        gain("warm-up DPO above SFT, true reward", warmup, initial),
        gain("Online DPO above offline DPO, true reward", stage_rewards(online, last), stage_rewards(offline, last)),
    ]


def trained(folder: Path, method: str) -> Path:
    """The run of the world's recipe with this method, warm-up included."""
    out = folder / "check" / method
    settings = [f"output_dir={out}", f"method.name={method}", "warmup_epochs=1"]
    AlignmentTrainer.from_recipe(load_recipe(folder / "recipe.yaml", settings)).train()
    return out


def stage_rewards(run: Path, stage: str) -> list[float]:
    """True rewards of the held-out responses of one stage of a run."""
    rows = read_rows(run / "evaluation" / f"{stage}.parquet")
    return true_reward([json.loads(row["prompt"]) for row in rows], [row["response"] for row in rows])


def gain(name: str, better: Sequence[float], worse: Sequence[float]) -> Check:
    differences = [a - b for a, b in zip(better, worse, strict=True)]
    return Check(name, fmean(differences), 2 * stdev(differences) / len(differences) ** 0.5)


def print_checks(checks: Sequence[Check]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("check", "value", "at least", ""):
        table.add_column(title, justify="right" if title in ("value", "at least") else "left")
    for each in checks:
        verdict = "[green]ok[/green]" if each.passed else "[red]fails[/red]"
        table.add_row(each.name, f"{each.value:.3f}", f"{each.threshold:.3f}", verdict)
    Console().print(table)
