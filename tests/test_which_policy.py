"""From the second iteration on: which policy scores, samples, is measured, and which one is the reference.

Each is computed again from the checkpoints of a finished run, and shown to differ from what the other policies give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from adaptpo import AlignmentConfig, AlignmentTrainer, Method
from adaptpo.choices.selection import SelectAll
from adaptpo.data.tokenization import tokenize_prompt
from adaptpo.generation.base import Sampling
from adaptpo.generation.transformers_engine import TransformersGenerator
from adaptpo.methods import METHODS
from adaptpo.models.inference import PromptedPair, evaluate_pairs
from adaptpo.models.loading import load_causal_lm, load_tokenizer, stop_ids_of
from adaptpo.pipeline.phases import filter as filter_phase
from adaptpo.run.arrow_rows import MappedRows
from adaptpo.run.files import read_rows
from adaptpo.run.schemas import read_offline
from adaptpo.seeds import seed_for
from adaptpo.types import PairLogps, Prompt, Response
from tests.runs import SETTINGS
from tests.tiny import preference_rows, save_policy, vowel_reward

K, SEED = 3, 5
CPU = TrainingArguments(use_cpu=True)
STRONG = SETTINGS["training"] | {"learning_rate": 1e-2}
"""So that the policies of a run differ by more than rounding."""
USUAL = {"seed": SEED, "warmup_epochs": 1, "training": STRONG}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


def align(policy: str, out: Path, method: Method, eval_data: Any = None, **settings: Any) -> Path:
    AlignmentTrainer(
        model=policy,
        args=AlignmentConfig(
            output_dir=str(out), **(SETTINGS | {"seed": SEED, "warmup_epochs": 1, "training": STRONG} | settings)
        ),
        method=method,
        train_dataset=preference_rows(16),
        eval_dataset=eval_data,
        reward_funcs=vowel_reward,
    ).train()
    return out


def policies(initial: str, run: Path) -> dict[str, str]:
    """Every policy that an iteration might take by mistake; `start` is the one that starts iteration 1."""
    warmup, start, end = (run / name / "checkpoint" for name in ("warmup", "iterations/0", "iterations/1"))
    return {"initial": initial, "warmup": str(warmup), "start": str(start), "end": str(end)}


def offline(run: Path, ids: Sequence[int]) -> list[PromptedPair]:
    return [read_offline(row) for row in MappedRows(run / "data" / "offline.arrow").read(list(ids))]


def logps(path: str, items: Sequence[PromptedPair]) -> PairLogps:
    return evaluate_pairs(load_causal_lm(path, {}), 0, items, CPU)


def shards(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in read_rows(path)]


def answered(
    path: str, initial: str, prompts: Sequence[Prompt], count: int, seed: Callable[[int], int]
) -> list[Response]:
    """What this policy answers, given the seed of each prompt."""
    tokenizer = load_tokenizer(initial)
    sampling = Sampling(1.0, 1.0, 0, SETTINGS["generation"]["max_new_tokens"], stop_ids_of(initial, tokenizer))
    engine = TransformersGenerator(load_causal_lm(path, {}), tokenizer, sampling, batch_size=4)
    answers = engine.generate(prompts, count, [seed(prompt.id) for prompt in prompts])
    return [response for own in answers for response in own]


def samples(path: str, initial: str, items: Sequence[PromptedPair], count: int, *place: int | str) -> list[list[int]]:
    """What this policy answers with the run's seeds."""
    prompts = [prompt for prompt, _ in items]
    found = answered(path, initial, prompts, count, lambda id_: seed_for(SEED, "generate", *place, id_))
    return [response.ids for response in found]


def fit(found: torch.Tensor, candidates: dict[str, torch.Tensor]) -> list[str]:
    """The names of the policies whose numbers these are."""
    return [name for name, own in candidates.items() if torch.allclose(found, own, atol=1e-3)]


@pytest.fixture(scope="module", params=["initial", "previous"])
def run(request: pytest.FixtureRequest, policy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    out = tmp_path_factory.mktemp("run") / "run"
    method = METHODS["metaapo"](num_generations=K, update_interval=2, keep_unselected=True)
    yield request.param, align(policy, out, replace(method, selection=SelectAll(), reference=request.param))


def test_the_policy_that_starts_an_iteration_samples(run: tuple[str, Path], policy: str) -> None:
    rows = shards(run[1] / "iterations/1/responses")
    items = offline(run[1], dict.fromkeys(row["prompt_id"] for row in rows))
    made = {name: samples(path, policy, items, K, 1) for name, path in policies(policy, run[1]).items()}
    found = [row["ids"] for row in rows]
    assert [name for name, own in made.items() if own == found] == ["start"]


def test_the_reference_is_the_one_that_was_chosen(run: tuple[str, Path], policy: str) -> None:
    """`initial`: kept once for offline pairs, and for fresh pairs in the iteration; `previous`: kept for all."""
    reference, out = run
    fresh = read_rows(out / "iterations/1/pairs.parquet")
    ids = list(dict.fromkeys(row["prompt_id"] for row in fresh if row["source"] == "offline"))
    items = offline(out, ids)
    folder = "iterations/1/reference" if reference == "previous" else "reference"
    kept = {row["prompt_id"]: row for row in shards(out / folder) if row["source"] == "offline"}
    found = torch.tensor([[kept[id_]["chosen"], kept[id_]["rejected"]] for id_ in ids])
    made = {name: logps(path, items) for name, path in policies(policy, out).items()}
    sides = {name: torch.stack([own.chosen, own.rejected], dim=1) for name, own in made.items()}
    assert fit(found, sides) == [{"initial": "initial", "previous": "start"}[reference]]


def test_the_policy_that_starts_an_iteration_scores_against_the_initial_one(policy: str, tmp_path: Path) -> None:
    out = align(policy, tmp_path / "run", METHODS["metaapo"](num_generations=K, update_interval=2))
    rows = shards(out / "iterations/1/scores")
    items = offline(out, [row["prompt_id"] for row in rows])
    initial = logps(policy, items)
    sides = {"reference_chosen": initial.chosen, "reference_rejected": initial.rejected}
    objective = METHODS["metaapo"]().objective
    made = {
        name: objective.margin(replace(logps(path, items), **sides)) for name, path in policies(policy, out).items()
    }
    assert fit(torch.tensor([row["margin"] for row in rows]), made) == ["start"]


def test_the_policy_that_starts_an_iteration_is_measured(policy: str, tmp_path: Path) -> None:
    out = align(policy, tmp_path / "run", METHODS["stage_blend"](num_generations=K), stage={"prompts": 6})
    rows = shards(out / "iterations/1/stage/responses")
    items = offline(out, dict.fromkeys(row["prompt_id"] for row in rows))
    made = {name: samples(path, policy, items, 2, "iterations/1/stage") for name, path in policies(policy, out).items()}
    assert [name for name, own in made.items() if own == [row["ids"] for row in rows]] == ["start"]


def test_each_evaluation_samples_the_policy_of_its_stage_anew_for_every_prompt(policy: str, tmp_path: Path) -> None:
    """The seeds differ by prompt and are the same at every stage."""
    held_out = preference_rows(6, seed=9)
    out = align(policy, tmp_path / "run", METHODS["dpo"](), eval_data=held_out)
    made = policies(policy, out)
    del made["warmup"]
    tokenizer = load_tokenizer(policy)
    prompts = [Prompt(n, row["prompt"], tokenize_prompt(tokenizer, row["prompt"])) for n, row in enumerate(held_out)]
    for stage, name in {"initial": "initial", "iteration-0": "start", "iteration-1": "end"}.items():
        found = [row["response"] for row in read_rows(out / f"evaluation/{stage}.parquet")]
        answers = {
            each: answered(path, policy, prompts, 1, lambda id_: seed_for(SEED, "evaluate", id_))
            for each, path in made.items()
        }
        assert [each for each, own in answers.items() if [a.text for a in own] == found] == [name]


def test_selm_ranks_each_response_by_its_own_reward(policy: str, tmp_path: Path) -> None:
    """Best and worst of the pool, from the texts alone."""
    out = align(policy, tmp_path / "run", METHODS["selm"](num_generations=K), num_iterations=1)
    fresh: dict[int, list[str]] = {}
    for row in shards(out / "iterations/0/responses"):
        fresh.setdefault(row["prompt_id"], []).append(row["text"])
    texts = {prompt.id: [pair.chosen.text, pair.rejected.text] for prompt, pair in offline(out, range(16))}
    pairs = read_rows(out / "iterations/0/pairs.parquet")
    assert {row["source"] for row in pairs} >= {"mixed"}
    for row in pairs:
        pool = [worth(text) for text in (*fresh[row["prompt_id"]], *texts[row["prompt_id"]])]
        assert row["reward_gap"] == pytest.approx(max(pool) - min(pool))


def worth(text: Any) -> float:
    content = text if isinstance(text, str) else text[-1]["content"]
    return float(vowel_reward([""], [content])[0])


def test_selective_dpo_ranks_each_pair_by_the_other_half(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = filter_phase.proxy_margins, {}

    def recorded(context: Any, name: str, training: Any, items: Any) -> torch.Tensor:
        seen[name] = ([prompt.id for prompt, _ in training], [prompt.id for prompt, _ in items])
        return original(context, name, training, items)

    monkeypatch.setattr(filter_phase, "proxy_margins", recorded)
    out = align(policy, tmp_path / "run", METHODS["selective_dpo"](), num_iterations=1)
    even, odd = list(range(0, 16, 2)), list(range(1, 16, 2))
    assert seen == {"half-1": (odd, even), "half-0": (even, odd)}
    kept = {row["prompt_id"]: row["priority"] for row in read_rows(out / "data" / "filter.parquet")}
    objective, initial = METHODS["dpo"]().objective, logps(policy, offline(out, range(16)))
    for half, ids in (("half-1", even), ("half-0", odd)):
        own = logps(str(out / "filter" / half / "checkpoint"), offline(out, ids))
        sides = {"reference_chosen": initial.chosen[ids], "reference_rejected": initial.rejected[ids]}
        assert torch.allclose(objective.margin(replace(own, **sides)), torch.tensor([kept[i] for i in ids]), atol=1e-3)
