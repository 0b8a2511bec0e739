"""A method is two edits: one function and one row. Everything else takes it from there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from torch import Tensor

from adaptpo.choices.learners.trust import Share
from adaptpo.choices.method import Method
from adaptpo.choices.objectives import DPO
from adaptpo.choices.pairing import OfflineAndOnline
from adaptpo.choices.selection import ScoredPrompts, Selection, known_margins
from adaptpo.choices.weighting import Weighting
from adaptpo.cli import main
from adaptpo.methods import METHODS
from adaptpo.methods.named import named
from adaptpo.run.files import JsonLines, read_rows
from adaptpo.run.state import read_state
from adaptpo.types import PairBatch
from tests.tiny import preference_rows, save_policy, save_reward_model, write_jsonl


@dataclass(frozen=True)
class SelectHighestFifth(Selection):
    """A fifth of the prompts: those whose offline pair the policy agrees with most."""

    needs_margins: ClassVar[bool] = True

    def expected_share(self) -> Share:
        return Share(0.2, "a fifth by definition")

    def probability(self, prompts: ScoredPrompts) -> Tensor:
        chosen = torch.zeros(prompts.count)
        chosen[known_margins(prompts).argsort(descending=True)[: round(0.2 * prompts.count)]] = 1
        return chosen


@dataclass(frozen=True)
class FreshTwice(Weighting):
    """A fresh pair counts twice as much as the offline pair of its prompt."""

    def weights(self, batch: PairBatch) -> Tensor:
        raw = 1.0 + batch.source
        return raw / torch.zeros_like(raw).index_add(0, batch.group, raw)[batch.group]


@named
def highest_fifth(num_generations: int = 4) -> Method:
    """A method that no file of the package knows.

    Paper: none; a test.
    """
    pairing = OfflineAndOnline(num_generations, keep_unselected=True)
    return Method(SelectHighestFifth(), pairing, DPO(), FreshTwice(), warmup_epochs=1)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(METHODS, "highest_fifth", highest_fifth)
    values = {
        "model": save_policy(tmp_path / "policy"),
        "reward": save_reward_model(tmp_path / "reward_model"),
        "data": {"path": write_jsonl(tmp_path / "train.jsonl", preference_rows(30))},
        "method": "highest_fifth",
        "num_iterations": 1,
        "max_prompt_length": 64,
        "generation": {"num_generations": 4, "max_new_tokens": 10},
        "training": {"learning_rate": 1e-3, "per_device_train_batch_size": 8},
        "show_progress": False,
        "output_dir": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0


def test_a_method_of_ones_own_runs_everywhere(
    recipe: Path, tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command("plan", str(recipe), "--json")
    plan = json.loads(capsys.readouterr().out)
    assert [share["value"] for share in plan["shares"]] == [0.2]
    command("plan", str(recipe))
    assert "a fifth by definition" in capsys.readouterr().out

    command("methods", "--json")
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["name"] == "highest_fifth"]
    assert (row["selection"], row["paper"]) == ("SelectHighestFifth()", "none; a test.")
    command("methods")
    assert "highest_fifth" in capsys.readouterr().out

    command("train", str(recipe))
    run = tmp_path / "run"
    assert read_state(run)["phases"]["iterations/0/select"]["selected"] == 6
    scores = {row["prompt_id"]: row["margin"] for path in (run / "iterations/0/scores").glob("*.parquet")
              for row in read_rows(path)}  # fmt: skip
    selected = [row["prompt_id"] for row in read_rows(run / "iterations/0/selection.parquet") if row["selected"]]
    assert sorted(selected) == sorted(sorted(scores, key=lambda prompt: -scores[prompt])[:6])
    lines = JsonLines(run / "iterations/0/pair_weights.jsonl").read()
    weights = {(line["source"], round(line["weight"], 4)) for line in lines}
    assert weights == {("online", 0.6667), ("offline", 0.3333), ("offline", 1.0)}

    command("report", str(run))
    assert "SelectHighestFifth" in (run / "report" / "report.html").read_text()
