"""Which offline pairs are used at all: priorities by hand, and filters in runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptpo.choices.filters import (
    FILTERS,
    AgreeingMargins,
    AlignmentPotential,
    EasyFirst,
    Filter,
    LowHeldOutLoss,
    LowPerplexity,
    PairFacts,
    standardized,
)
from adaptpo.choices.objectives import KTO
from adaptpo.errors import ConfigError
from adaptpo.methods import METHODS
from adaptpo.run.files import JsonLines, read_rows
from adaptpo.run.state import read_state
from tests.runs import SETTINGS, assert_same_run
from tests.test_methods import align, build, weights
from tests.tiny import save_policy

FACTS = PairFacts(
    count=4,
    perplexity=torch.tensor([3.0, 9.0, 1.0, 5.0]),
    margin=torch.tensor([1.0, -1.0, 3.0, -3.0]),
    held_out_margin=torch.tensor([0.1, 2.0, -1.0, 0.5]),
    reward_gap=torch.tensor([2.0, 0.0, 2.0, float("nan")]),
)


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        (LowPerplexity(0.5), [0, 2]),
        (LowHeldOutLoss(0.5), [1, 3]),
        (AgreeingMargins(0.25), [2]),
        (AlignmentPotential(0.25), [3]),
        (EasyFirst(), [0, 1, 2, 3]),
        (LowPerplexity(0.01), [2]),
    ],
)
def test_what_is_kept_by_hand(chosen: Filter, kept: list[int]) -> None:
    """Standardized margins are 0.39, -0.39, 1.16, -1.16; gaps 0.58, -1.15, 0.58 and, where unknown, the mean 0."""
    assert chosen.keep(FACTS).nonzero()[:, 0].tolist() == kept


def test_one_low_margin_excludes_a_pair() -> None:
    """Margin -1 with gap 8 against 0.9 with 0.9, among many: a sum of standardized margins would keep the first."""
    margins, gaps = [-1.0, 0.9, *[0.7, -0.7] * 49], [8.0, 0.9, *[-0.9] * 98]
    facts = PairFacts(100, margin=torch.tensor(margins), reward_gap=torch.tensor(gaps))
    summed = standardized(facts.margin) + standardized(facts.reward_gap)
    assert summed.argmax() == 0 and AgreeingMargins(0.01).keep(facts).nonzero()[:, 0].tolist() == [1]


def test_a_negative_gap_is_no_potential() -> None:
    """The second pair's rejected response has by far the higher reward."""
    facts = PairFacts(3, margin=torch.tensor([0.0, 0.0, 0.1]), reward_gap=torch.tensor([1.0, -9.0, 0.5]))
    assert AlignmentPotential(0.3).keep(facts).nonzero()[:, 0].tolist() == [0]


def test_standardized_by_hand() -> None:
    values = standardized(torch.tensor([1.0, 3.0, float("nan")]))
    assert values.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, 0.0])
    assert standardized(torch.tensor([2.0, 2.0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", FILTERS)
def test_filters_need_what_they_say(name: str) -> None:
    chosen = FILTERS[name]()
    given = {fact: getattr(FACTS, fact) for fact in chosen.needs}
    assert chosen.priority(PairFacts(4, **given)).shape == (4,)
    for fact in chosen.needs:
        with pytest.raises(ValueError, match="missing"):
            chosen.priority(PairFacts(4, **{name: value for name, value in given.items() if name != fact}))


@pytest.mark.parametrize("share", [0.0, -1.0, 1.2])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        LowPerplexity(share)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize(("name", "kept"), [("selective_dpo", 6), ("bees", 3), ("map", 5), ("perplexity_filter", 10)])
def test_runs_train_on_what_was_kept(name: str, kept: int, policy: str, tmp_path: Path) -> None:
    align(policy, tmp_path / "run", build(name), rows=12)
    rows = list(read_rows(tmp_path / "run" / "data" / "filter.parquet"))
    assert len(rows) == 12 and sum(row["kept"] for row in rows) == kept
    trained = [pair["prompt_id"] for part in range(2) for pair in pairs_of(tmp_path / "run", part)]
    without_pair = (tmp_path / "run" / "dropped.jsonl").read_text().count("best and worst response")
    assert set(trained) <= {row["prompt_id"] for row in rows if row["kept"]}
    assert len(trained) == kept - without_pair
    assert (tmp_path / "run" / "dropped.jsonl").read_text().count("left out by the filter") == 12 - kept


def test_a_filter_by_rewards_annotates_both_responses(policy: str, tmp_path: Path) -> None:
    for name, cost in (("bees", 24), ("selective_dpo", None)):
        align(policy, tmp_path / name, build(name), rows=12, num_iterations=1)
        assert read_state(tmp_path / name)["phases"]["filter"].get("annotated") == cost


def test_the_models_of_a_filter_train_for_one_epoch(policy: str, tmp_path: Path) -> None:
    """Each half has 6 pairs in batches of 4, however long an iteration is."""
    training = SETTINGS["training"] | {"num_train_epochs": 3}
    align(policy, tmp_path / "run", build("selective_dpo"), rows=12, num_iterations=1, training=training)
    steps = [
        record["step"]
        for record in JsonLines(tmp_path / "run" / "metrics.jsonl").records()
        if record["phase"] == "filter/half-0" and "step" in record
    ]
    assert max(steps) == 2


def pairs_of(run: Path, part: int) -> list[dict[str, Any]]:
    return list(read_rows(run / "iterations" / str(part) / "pairs.parquet"))


def test_the_curriculum_trains_easy_pairs_first(policy: str, tmp_path: Path) -> None:
    align(policy, tmp_path / "run", build("loss_curriculum"), rows=12, num_iterations=1)
    rank = {row["prompt_id"]: row["rank"] for row in read_rows(tmp_path / "run" / "data" / "filter.parquet")}
    lines = (tmp_path / "run" / "iterations/0/pair_weights.jsonl").read_text().splitlines()
    steps = [(record["step"], rank[record["prompt_id"]]) for record in map(json.loads, lines)]
    assert len(steps) == 12
    for step in (1, 2, 3):
        assert {r for s, r in steps if s == step} == set(range(4 * (step - 1), 4 * step))


def test_a_warm_up_after_a_filter_is_the_same_in_a_process_of_its_own(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter's training moves KTO's reference point, which a process that resumes after it does not know."""
    rising = KTO(undesirable_weight=0.0)
    training = SETTINGS["training"] | {"learning_rate": 1e-2}
    settings = {"rows": 24, "num_iterations": 1, "warmup_epochs": 1, "training": training}
    align(policy, tmp_path / "whole", METHODS["loss_curriculum"](objective=rising), **settings)

    with monkeypatch.context() as patched:
        patched.setattr("adaptpo.pipeline.loop.warm_up", raising(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            align(policy, tmp_path / "resumed", METHODS["loss_curriculum"](objective=rising), **settings)
    align(policy, tmp_path / "resumed", METHODS["loss_curriculum"](objective=rising), **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


def raising(error: type[BaseException]) -> Callable[..., None]:
    def work(*_: Any) -> None:
        raise error

    return work


def test_a_filter_that_keeps_all_changes_nothing(policy: str, tmp_path: Path) -> None:
    for name, method in (("plain", build("dpo")), ("kept", replace(build("dpo"), filter=LowPerplexity(1.0)))):
        align(policy, tmp_path / name, method, rows=9)
    plain, kept = weights(tmp_path / "plain" / "final"), weights(tmp_path / "kept" / "final")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in plain.items())
