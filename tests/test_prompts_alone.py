"""Prompts without an offline pair: which methods take them, what is done with them, and how they are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.choices.pairing import PAIRINGS, Candidates, NoPair
from adaptpo.config.recipe import load_recipe
from adaptpo.data import problems
from adaptpo.errors import DataError, RunError
from adaptpo.methods import METHODS
from adaptpo.plan.against import compare_counts
from adaptpo.plan.command import read_job
from adaptpo.plan.estimate import make_plan
from adaptpo.plan.machines import read_machine
from adaptpo.report import RunData, iteration_table, key_figures
from adaptpo.run.files import JsonLines, read_rows
from adaptpo.run.state import read_state
from adaptpo.types import PreferencePair, Response
from tests.runs import SETTINGS, assert_same_run, run_in_process, start, weights
from tests.test_methods import build, covering, policy_moved, read_shards, reward_for
from tests.tiny import preference_rows, save_policy, vowel_reward, write_jsonl

PAIRS = preference_rows(10)
PROMPTS = [{"prompt": row["prompt"], "answer": row["answer"]} for row in preference_rows(10, seed=5)]
BARE = [{"prompt": row["prompt"]} for row in PROMPTS]
MIXED = [row for both in zip(PAIRS, PROMPTS, strict=True) for row in both]
TAKING = [name for name in METHODS if METHODS[name]().takes_prompts]
SAMPLE = [name for name in covering("pairing", "trainer") if name in TAKING] + ["metaapo", "iterative_dpo_metapo"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"), num_hidden_layers=1)


def align(policy: str, out: Path, name: str, data: Any, reward: Any = None, **settings: Any) -> Path:
    method = build(name)
    return AlignmentTrainer(
        model=policy,
        args=AlignmentConfig(output_dir=str(out), **SETTINGS | settings),
        method=method,
        train_dataset=data,
        reward_funcs=reward or reward_for(method),
    ).train()


# --- which methods ---------------------------------------------------------------------------------------------------


def test_methods_that_generate_in_every_iteration_and_filter_nothing_take_prompts() -> None:
    assert {"online_dpo", "iterative_dpo", "selm", "rdo", "ppo", "grpo", "rloo", "on_on", "metaapo"} <= set(TAKING)
    refusing = set(METHODS) - set(TAKING)
    assert {"dpo", "kto", "metapo", "weighted_dpo", "bees", "map", "off_on", "on_off", "two_stage"} <= refusing
    needing = {name for name in TAKING if METHODS[name]().uses_of_pairs(2)}
    assert {"metaapo", "adpo", "stage_blend", "iterative_dpo_metapo"} <= needing
    assert not {"online_dpo", "iterative_dpo", "selm", "rdo", "ppo", "grpo", "rloo", "metaapo_random"} & needing


@pytest.mark.parametrize("name", PAIRINGS)
def test_without_an_offline_pair_fresh_responses_pair_among_themselves(name: str) -> None:
    pairing = PAIRINGS[name]()
    if not pairing.takes_prompts:
        return
    responses = tuple(Response(f"r{i}", [10 + i]) for i in range(3))
    vectors = tuple([float(i)] * pairing.num_rewards for i in range(3))
    made = pairing.pairs(None, Candidates(3, 1, responses, (0.0, 2.0, 1.0), reward_vectors=vectors))
    assert not isinstance(made, NoPair) and pairing.pairs(None, None) == ()
    assert all(pair.source == "online" and pair.prompt_id == 3 for pair in made)
    if pairing.num_rewards:
        assert [(pair.objective, pair.chosen.text) for pair in made] == [(0, "r2"), (1, "r2")]
    elif name != "rollouts":
        assert [(pair.chosen.text, pair.rejected.text) for pair in made] == [("r1", "r0")]
    same = pairing.pairs(None, Candidates(3, 1, responses, (1.0, 1.0, 1.0), reward_vectors=vectors))
    assert name == "rollouts" or pairing.num_rewards or isinstance(same, NoPair)


def test_a_mixed_pool_keeps_the_first_response_drawn_of_a_prompt_alone() -> None:
    pairing = PAIRINGS["mixed_pool"](keep_sample=True)  # type: ignore[call-arg]
    responses = tuple(Response(f"r{i}", [10 + i]) for i in range(3))
    (pair,) = pairing.pairs(None, Candidates(3, 1, responses, (1.0, 2.0, 0.0)))  # type: ignore[misc]
    assert isinstance(pair, PreferencePair) and pair.sample is responses[0]


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLE)
def test_mixed_rows(name: str, policy: str, tmp_path: Path) -> None:
    """Every method that takes prompts generates for all of those without a pair, and trains on what comes out."""
    out = tmp_path / "run"
    align(policy, out, name, MIXED, warmup_epochs=0)
    rows = read_rows(out / "data" / "offline.parquet")
    alone = {row["prompt_id"] for row in rows if row["chosen"] is None}
    assert len(alone) == 10 and len(rows) == 20
    chosen = [row for t in range(2) for row in read_rows(out / f"iterations/{t}/selection.parquet")]
    assert all(row["probability"] == 1 and row["selected"] for row in chosen if row["prompt_id"] in alone)
    phases = read_state(out)["phases"]
    assert phases["data"]["kept"] == 10 and phases["data"]["prompts_alone"] == 10
    counts = [phases[f"iterations/{t}/select"] for t in range(2)]
    held_out = phases.get("validation", {}).get("held_out", 0)
    assert sum(count["prompts"] for count in counts) == 10 - held_out
    assert [count["prompts_alone"] for count in counts] == [5, 5]
    assert sum(count["selected"] for count in counts) == sum(
        row["selected"] for row in chosen if row["prompt_id"] not in alone
    )
    lines = [line for t in range(2) for line in JsonLines(out / f"iterations/{t}/pair_weights.jsonl").read()]
    sources = {line["source"] for line in lines if line["prompt_id"] in alone}
    assert sources <= {"online"} and policy_moved(policy, out)


def test_prompts_alone_train_online_dpo_as_the_prompts_of_pairs_do(policy: str, tmp_path: Path) -> None:
    """Bit for bit; the warm-up, which is the method's default, is left out and says so."""
    prompts = [{name: value for name, value in row.items() if name not in ("chosen", "rejected")} for row in PAIRS]
    align(policy, tmp_path / "alone", "online_dpo", prompts)
    align(policy, tmp_path / "pairs", "online_dpo", PAIRS, warmup_epochs=0)
    alone, pairs = (weights(tmp_path / name / "final") for name in ("alone", "pairs"))
    assert alone.keys() == pairs.keys() and all(torch.equal(tensor, pairs[name]) for name, tensor in alone.items())
    assert policy_moved(policy, tmp_path / "alone")
    phases = read_state(tmp_path / "alone")["phases"]
    assert "warmup" not in phases and "reference" not in phases and phases["data"]["prompts_alone"] == 10


@pytest.mark.parametrize("name", ["grpo", "selm"])
def test_prompts_alone_as_plain_text(name: str, tmp_path: Path) -> None:
    policy = save_policy(tmp_path / "policy", chat=False)
    rows = [{"prompt": row["prompt"][0]["content"]} for row in PROMPTS]
    align(policy, tmp_path / "run", name, rows, vowel_reward)
    assert policy_moved(policy, tmp_path / "run")


def test_metaapo_learns_from_pairs_and_generates_for_prompts_beside_them(policy: str, tmp_path: Path) -> None:
    """References lie by pair, not by prompt: against itself, the policy has a margin of 0 on every pair."""
    out = tmp_path / "run"
    align(policy, out, "metaapo", MIXED, warmup_epochs=0, num_iterations=1, shard_size=3)
    scores = read_shards(out / "iterations/0/scores")
    assert len(scores) == 10 and all(abs(row["margin"]) < 1e-5 for row in scores)
    lines = JsonLines(out / "iterations/0/pair_weights.jsonl").read()
    alone = {row["prompt_id"] for row in read_rows(out / "data" / "offline.parquet") if row["chosen"] is None}
    assert all(line["weight"] == 1 for line in lines if line["prompt_id"] in alone)
    first = [line for line in lines if line["step"] == 1]
    assert first and all(abs(line["margin"]) < 1e-4 for line in first)


@pytest.mark.engines
def test_a_killed_run_on_mixed_rows_resumes(policy: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"model": policy, "reward": vowel_reward, "data": MIXED, "held_out": 0, "shard_size": 3}
    start(out=tmp_path / "straight", **arguments)
    for point in ("file:reference/00001", "start:iterations/1/train"):
        assert run_in_process(point, out=tmp_path / "killed", **arguments) == -9
    assert run_in_process(out=tmp_path / "killed", **arguments) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_a_branch_shares_the_rows_of_its_source(policy: str, tmp_path: Path) -> None:
    """Where some rows have no pair, only with a method that takes them, too."""
    for data in (PAIRS, MIXED):
        folder = tmp_path / str(len(data))
        align(policy, folder / "dpo", "dpo", data, warmup_epochs=1, num_iterations=1)
        branch = {"warmup_epochs": 1, "num_iterations": 1, "branch_of": str(folder / "dpo")}
        if data is PAIRS:
            align(policy, folder / "branch", "online_dpo", data, **branch)
            continue
        with pytest.raises(RunError, match=r"method.takes_prompts: False in the run, True now"):
            align(policy, folder / "branch", "online_dpo", data, **branch)
    dropped = JsonLines(folder / "dpo" / "dropped.jsonl").read()
    assert {line["reason"] for line in dropped} == {problems.NO_RESPONSES} and len(dropped) == 10


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dpo", {}, "this method trains on pairs of the data: give `chosen` and `rejected` too, or choose a method"),
        ("two_stage", {}, "this method trains on pairs of the data"),
        ("bees", {}, "generates in every iteration and filters nothing"),
        ("metaapo", {}, "method 'metaapo' needs offline pairs: its selection scores them. No row of the data has one"),
        ("metaapo_metapo", {}, "its selection scores them, and its weights are learned on held-out ones"),
        ("online_dpo", {"warmup_epochs": 1}, "warmup_epochs is 1, and a warm-up trains on offline pairs"),
        ("online_dpo", {"reward": "train"}, "`reward: train` trains a reward model on offline pairs"),
    ],
)
def test_what_needs_pairs_refuses_prompts_alone_first_of_all(
    name: str, settings: dict[str, Any], message: str, policy: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        align(policy, tmp_path / "run", name, BARE, **settings)
    assert message in str(caught.value)
    assert {phase for phase, facts in read_state(tmp_path / "run")["phases"].items() if facts["done"]} <= {"data"}


def test_a_set_without_responses_is_named(policy: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data set 'prompts': each row has a prompt without responses"):
        align(policy, tmp_path / "run", "dpo", {"pairs": PAIRS, "prompts": BARE})


@pytest.mark.parametrize(("name", "reward"), [("grpo", vowel_reward), ("online_dpo", "train")])
def test_trl_gets_one_format(name: str, reward: Any, policy: str, tmp_path: Path) -> None:
    plain = preference_rows(4, chat=False)
    with pytest.raises(DataError, match=r"10 prompts are conversations and 4 plain text, and TRL's trainer"):
        align(policy, tmp_path / "run", name, {"chat": PAIRS, "plain": plain}, reward)


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [MIXED, PROMPTS])
def test_a_plan_counts_prompts_alone_as_the_run_does(data: Any, policy: str, tmp_path: Path) -> None:
    values = SETTINGS | {
        "model": policy,
        "data": write_jsonl(tmp_path / "rows.jsonl", data),
        "reward": "python:tests.tiny:vowel_reward",
        "method": {"name": "selm", "num_generations": 3},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    planned = make_plan(read_job(load_recipe(tmp_path / "recipe.yaml")), read_machine("h100"))
    align(policy, tmp_path / "run", "selm", str(tmp_path / "rows.jsonl"))
    for one in compare_counts(planned, tmp_path / "run"):
        assert one.informed == pytest.approx(one.measured), one.name
    names = {cost.name for cost in planned.costs}
    assert ("warmup" in names) == ("reference" in names) == (data is MIXED)


def test_the_report_counts_prompts_alone_apart(policy: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    start(policy, out, vowel_reward, "metaapo_random", data={"pairs": PAIRS, "prompts": PROMPTS}, held_out=0)
    run = RunData.open(out)
    table = iteration_table(run)
    assert table is not None
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(cell["prompts"], cell["prompts without a pair"]) for cell in cells] == [("5", "5")] * 2
    counts = [read_state(out)["phases"][f"iterations/{t}/select"] for t in range(2)]
    assert [cell["generated for"] for cell in cells] == [str(count["selected"]) for count in counts]
    (note,) = [note for label, _, note in key_figures(run) if label == "annotation ratio"]
    assert (
        note == f"responses for {sum(count['selected'] for count in counts)} of 10 prompts, and for 10 without a pair"
    )
    found = read_state(out)["phases"]["iterations/0/datasets"]["datasets"]
    assert (found["pairs"]["prompts"], found["pairs"]["prompts_alone"]) == (5, 0)
    assert (found["prompts"]["prompts"], found["prompts"]["prompts_alone"], found["prompts"]["selected"]) == (0, 5, 0)
