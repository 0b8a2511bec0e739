"""Unpaired rows: how they are read, their forward passes, and runs on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.choices.objectives import KTO
from adaptpo.data import iter_examples
from adaptpo.data.problems import NO_VERDICT
from adaptpo.errors import DataError
from adaptpo.models.collate import GroupCollator
from adaptpo.models.logps import pair_logps
from adaptpo.models.packing import PADDED, RowPacking, row_tokens
from adaptpo.models.shared_prompt.attention import share_prompts
from adaptpo.run.files import read_rows
from adaptpo.types import Dropped, PreferenceExample, Response
from tests.groups import random_groups
from tests.runs import SETTINGS, weights
from tests.tiny import byte_tokenizer, preference_rows, save_policy, tiny_model

SYSTEM = {"role": "system", "content": "s"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def example(row: dict[str, Any]) -> PreferenceExample:
    (found,) = iter_examples([row])
    assert isinstance(found, PreferenceExample)
    return found


@pytest.mark.parametrize("label", [True, False, 1, 0, "True", "false", "1", "0"])
@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"prompt": "say 0", "completion": "cat"}, "say 0", "cat"),
        ({"prompt": [user("q")], "completion": [assistant("a")]}, [user("q")], [assistant("a")]),
        ({"prompt": "q", "completion": [assistant("a")]}, [user("q")], [assistant("a")]),
        ({"prompt": [user("q")], "completion": "a"}, [user("q")], [assistant("a")]),
        ({"messages": [user("q"), assistant("a")]}, [user("q")], [assistant("a")]),
        ({"conversations": [user("q"), assistant("none")]}, [user("q")], [assistant("none")]),
        ({"instruction": "i", "input": "j", "output": "none"}, [user("i\nj")], [assistant("none")]),
        ({"prompt": "q", "completion": "a", "system": "s"}, [SYSTEM, user("q")], [assistant("a")]),
    ],
)  # fmt: skip
def test_rows_are_read_like_pairs(row: dict[str, Any], label: Any, prompt: Any, response: Any) -> None:
    good = label in (True, 1, "True", "1")
    found = example(row | {"kto_tag" if "instruction" in row else "label": label})
    assert (found.prompt, found.chosen if good else found.rejected) == (prompt, response)
    assert found.absent == ("rejected" if good else "chosen")


@pytest.mark.parametrize(
    ("columns", "named"),
    [({"label": "good"}, "`label` (here 'good') says"), ({"kto_tag": 3}, "`kto_tag` (here 3) says"), ({}, None)],
)
def test_a_response_without_a_verdict_is_refused(columns: dict[str, Any], named: str | None) -> None:
    with pytest.raises(DataError, match="one response only") as refused:
        list(iter_examples([{"prompt": "p", "completion": "c"} | columns]))
    said = str(refused.value)
    assert named in said if named else "write it as true" not in said


@pytest.mark.parametrize("label", [None, "good", 0.5, "nan"])
def test_a_later_response_without_a_verdict_is_left_out(label: Any) -> None:
    rows = [{"prompt": "p", "completion": "c", "label": value} for value in (True, label)]
    assert list(iter_examples(rows))[1] == Dropped(1, NO_VERDICT)


def test_a_label_beside_a_pair_is_a_column() -> None:
    found = example({"prompt": "p", "chosen": "a", "rejected": "b", "label": True, "completion": "c"})
    assert (found.chosen, found.rejected, found.absent) == ("a", "b", None)


def test_an_empty_response_is_left_out() -> None:
    (found,) = iter_examples([{"prompt": "p", "completion": " ", "label": True}])
    assert isinstance(found, Dropped) and found.reason == "empty chosen response"


@pytest.mark.parametrize("rows", [PADDED, RowPacking(shared_prompts=True)], ids=["padded", "shared"])
def test_an_absent_response_is_not_computed_and_changes_no_other(rows: RowPacking) -> None:
    model = tiny_model(byte_tokenizer())
    share_prompts(model)
    groups, nothing = random_groups(4), Response("", [])
    alone = [
        replace(g, pairs=tuple(replace(pair, **{side: nothing}) for pair in g.pairs))
        for g, side in zip(groups, ("chosen", "rejected", "chosen", "rejected"), strict=True)
    ]
    whole, half = (pair_logps(model, GroupCollator(0, rows)(some)) for some in (groups, alone))
    assert row_tokens(alone, rows) < row_tokens(groups, rows)
    without_chosen = torch.tensor([True, True, False, False] * 2)
    expected = (whole.chosen.masked_fill(without_chosen, 0), whole.rejected.masked_fill(~without_chosen, 0))
    torch.testing.assert_close((half.chosen, half.rejected), expected)
    assert torch.equal(half.chosen_tokens > 0, ~without_chosen)
    sides = torch.stack([half.chosen, half.rejected], dim=1)
    torch.testing.assert_close(half.shared, sides)  # A response alone has no longer tail.


UNPAIRED = [
    {"prompt": row["prompt"], "completion": row["chosen" if number % 3 else "rejected"], "label": bool(number % 3)}
    for number, row in enumerate(preference_rows(12))
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"), num_hidden_layers=1)


def align(policy: str, out: Path, method: Any, **inputs: Any) -> Path:
    args = AlignmentConfig(output_dir=str(out), **SETTINGS)
    return Path(AlignmentTrainer(policy, args, method, UNPAIRED, **inputs).train())


@pytest.mark.parametrize("name", ["kto", "apo_zero"])
def test_a_run_trains_and_evaluates_on_unpaired_rows(name: str, policy: str, tmp_path: Path) -> None:
    final = align(policy, tmp_path / "run", getattr(methods, name)(), eval_dataset=UNPAIRED)
    before, after = weights(Path(policy)), weights(final)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    kept = list(read_rows(tmp_path / "run/data/offline.parquet"))
    assert [bool(row["chosen_ids"]) for row in kept] == [row["label"] for row in UNPAIRED]
    assert all(bool(row["chosen_ids"]) != bool(row["rejected_ids"]) for row in kept)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (evaluated,) = (line for line in lines if line["phase"] == "evaluate/iteration-1")
    assert {"eval_loss", "eval_rewards/chosen", "eval_rewards/rejected"} <= evaluated.keys()
    assert "eval_rewards/margins" not in evaluated
    (initial,) = (line for line in lines if line["phase"] == "evaluate/initial")
    assert evaluated["eval_loss"] < initial["eval_loss"]


@pytest.mark.parametrize("name", ["dpo", "metaapo"])
def test_methods_that_compare_two_responses_refuse_them(name: str, policy: str, tmp_path: Path) -> None:
    reward = lambda completions, **_: [0.0] * len(completions)  # noqa: E731
    with pytest.raises(DataError, match=f"method '{name}' cannot train on row 0: .*kto, apo_zero and bco_pair"):
        align(policy, tmp_path / "run", getattr(methods, name)(), reward_funcs=reward)


def test_what_takes_unpaired_rows() -> None:
    taking = {name for name, build in methods.METHODS.items() if build().takes_unpaired}
    assert taking == {"kto", "apo_zero", "bco_pair"}
    assert methods.focalpo(KTO()).takes_unpaired and not methods.metapo(KTO()).takes_unpaired
    assert not methods.selective_dpo(KTO()).takes_unpaired
