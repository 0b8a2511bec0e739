"""`examples/minimal_loop.py` is the library's own algorithm: same selection, pairs and weights, to the last bit."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from adaptpo import AlignmentTrainer
from adaptpo.config.recipe import Recipe, load_recipe
from adaptpo.run.files import read_rows
from adaptpo.run.state import read_state
from adaptpo.types import PreferencePair
from tests.tiny import preference_rows, save_policy, save_reward_model, write_jsonl

EXAMPLE = Path(__file__).parents[1] / "examples" / "minimal_loop.py"


def minimal_loop() -> Any:
    spec = spec_from_file_location("minimal_loop", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["dpo", "simpo"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    """A recipe as `adaptpo sandbox build` writes it, over tiny models and with several shards, passes and updates. That
    of SimPO has two data sets, with other names of columns, and long rows."""
    rows = preference_rows(48)
    one = {"path": write_jsonl(tmp_path / "train.jsonl", rows)}
    asked = [{"question": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]} for row in rows[:30]]
    long = [row | {"prompt": [{"role": "user", "content": "a" * 65}]} for row in rows[:2]]
    files = [write_jsonl(tmp_path / f"{n}.jsonl", own) for n, own in enumerate((asked, [*long, *rows[30:]]))]
    two = {"sets": {"asked": {"path": files[0], "columns": {"prompt": "question"}}, "rest": files[1]}}
    values = {
        "model": save_policy(tmp_path / "policy"),
        "reward": save_reward_model(tmp_path / "reward_model"),
        "data": one if request.param == "dpo" else two,
        "method": {"name": "metaapo", "objective": {"name": request.param}},
        "num_iterations": 2,
        "max_prompt_length": 64,
        "max_tokens_per_batch": 400,
        "generation": {"num_generations": 4, "max_new_tokens": 12},
        "training": {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "num_train_epochs": 2}
        | {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "warmup_steps": 2},
        "meta": {"learning_rate": 0.05, "update_interval": 2},
        "shard_size": 16,
        "seed": 3,
        "show_progress": False,
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return load_recipe(tmp_path / "recipe.yaml")


def kept(pair: PreferencePair) -> dict[str, Any]:
    """As `pairs.parquet` holds it."""
    ids = {"chosen_ids": pair.chosen.ids, "rejected_ids": pair.rejected.ids}
    return {"prompt_id": pair.prompt_id, "source": pair.source, "reward_gap": pair.reward_gap} | ids


def test_minimal_loop_does_what_the_library_does(recipe: Recipe) -> None:
    AlignmentTrainer.from_recipe(recipe).train()
    loop = minimal_loop().MinimalLoop(recipe)
    policy = loop.run()
    run = Path(recipe.output_dir)
    updates = 0
    for number, (selected, pairs) in enumerate(zip(loop.selected, loop.pairs, strict=True)):
        drawn = read_rows(run / f"iterations/{number}/selection.parquet")
        assert selected == [row["prompt_id"] for row in drawn if row["selected"]]
        assert selected
        names = ("prompt_id", "source", "reward_gap", "chosen_ids", "rejected_ids")
        rows = read_rows(run / f"iterations/{number}/pairs.parquet")
        assert [kept(pair) for pair in pairs] == [{name: row[name] for name in names} for row in rows]
        updates += read_state(run)["phases"][f"iterations/{number}/train"]["learner_updates"]["the meta-learner"]
    assert sum(map(len, loop.selected)) < 48
    assert loop.method.updates()["the meta-learner"] == updates > 1
    saved = load_file(run / "final" / "model.safetensors")
    assert len(saved) > 10
    assert [name for name, tensor in saved.items() if not torch.equal(tensor, policy.state_dict()[name])] == []
    kept_learner = torch.load(run / "iterations/1/checkpoint/method.pt", weights_only=True)["learners"][0]["network"]
    own = loop.method.learners()[0].state_dict()["network"]
    assert [name for name in own if not torch.equal(own[name], kept_learner[name])] == []
