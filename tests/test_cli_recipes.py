"""`adaptpo init` writes recipes that load; `adaptpo check` refuses what a run refuses and shows what it trains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from adaptpo.choices.learners.base import Schedule
from adaptpo.cli import main
from adaptpo.cli.init import Answers, recipe_text
from adaptpo.config.recipe import load_recipe
from adaptpo.methods import METHODS
from adaptpo.methods.build import build_method
from tests.tiny import preference_rows, save_policy, write_jsonl

REWARD = "def reward(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write_jsonl(tmp_path / "pairs.jsonl", [*preference_rows(5), {"prompt": "p", "chosen": "", "rejected": "b"}])
    return tmp_path


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code or 0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("machine", ["cpu", "h100x8"])
def test_every_method_has_a_recipe(name: str, machine: str, tmp_path: Path) -> None:
    reward = "org/reward" if METHODS[name]().pairing.num_generations else None
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(Answers("org/model", "org/data", name, reward, machine), "runs/x"))
    recipe = load_recipe(path)
    training = recipe.training
    count = 8 if machine == "h100x8" else 1
    assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] * count == 128
    assert (recipe.method, recipe.reward, recipe.peft is None) == (name, reward, machine != "cpu")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_recipes_of_the_papers_load_and_teach_their_learners(path: Path) -> None:
    recipe = load_recipe(path)
    method = build_method(recipe)
    training = recipe.training
    prompts = 64_000 // recipe.num_iterations
    steps = prompts // (training["per_device_train_batch_size"] * training["gradient_accumulation_steps"])
    epochs = training.get("num_train_epochs", method.num_train_epochs)
    assert method.doubts(Schedule((int(steps * epochs),) * recipe.num_iterations, epochs)) == []
    if method.name == "metapo":
        assert (steps * epochs, epochs) == (6000, 3), "Table 22"


def test_a_method_says_how_many_epochs_it_needs(tmp_path: Path) -> None:
    """MetaPO's recipe trains for three epochs; so does a run whose recipe names none."""
    text = recipe_text(Answers("m", "d", "metapo", None, "cpu"), "runs/x")
    assert "num_train_epochs: 3" in text
    assert "num_train_epochs: 1" in recipe_text(Answers("m", "d", "dpo", None, "cpu"), "runs/x")


def test_a_judge_is_written_as_a_recipe_has_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(Answers("m", "d", "metaapo", "{judge: gpt-4o-mini}", "cpu"), "runs/x"))
    assert load_recipe(path).reward == {"judge": "gpt-4o-mini"}


def test_init_holds_data_out(tmp_path: Path) -> None:
    """A comment says what is missed without them."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(Answers("m", "d", "dpo", None, "cpu", eval_data="held.jsonl"), "runs/x"))
    loaded = load_recipe(path)
    assert loaded.eval_data is not None and loaded.eval_data.path == "held.jsonl"
    assert loaded.training["save_steps"] == 50
    path.write_text(text := recipe_text(Answers("m", "d", "dpo", None, "cpu"), "runs/x"))
    assert load_recipe(path).eval_data is None and "\n# eval_data: held_out.jsonl  # pairs that are never" in text


def test_init_and_check(policy: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "shop_reward_of_init.py").write_text(REWARD)
    given = ("--model", policy, "--data", "pairs.jsonl", "--reward", "python:shop_reward_of_init:reward")
    assert status("init", *given, "--method", "metaapo") == 0
    assert "adaptpo check recipe.yaml" in capsys.readouterr().out
    assert status("init", *given) == 2  # The file exists.
    assert "--out" in capsys.readouterr().err

    smaller = ("--set", "max_prompt_length=64", "--set", "generation.max_new_tokens=8")
    assert status("check", "recipe.yaml", *smaller, "--examples", "1") == 0
    said = capsys.readouterr().out
    assert "5 pairs are usable, 1 rows are left out" in said
    assert "1 x " in said and "empty" in said
    assert "will never be updated" in said  # One step of 128 prompts, and an update every 8 steps.
    first = preference_rows(5)[0]
    text = first["chosen"][-1]["content"] if isinstance(first["chosen"], list) else first["chosen"]
    assert "|".join(text) in said
    assert "prompt, not trained" in said and "rejected, trained" in said
    assert not (folder / "runs").exists()


def test_check_reads_only_so_many_rows(policy: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"model": policy, "data": "pairs.jsonl", "method": "dpo", "max_prompt_length": 64, "output_dir": "runs/x"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"generation": {"max_new_tokens": 8}}))
    assert status("check", "recipe.yaml", "--rows", "2", "--examples", "0") == 0
    said = capsys.readouterr().out
    assert "2 pairs of the first 2 rows are usable, 0 rows are left out" in said and "not trained" not in said


def test_check_refuses_what_a_run_refuses(policy: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"model": policy, "data": "pairs.jsonl", "method": "online_dpo", "output_dir": "runs/x"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert status("check", "recipe.yaml") == 2
    assert "the run has no reward" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--data", "d"), "--model is missing"),
        (("--model", "m", "--data", "d"), "--reward is missing"),
        (("--model", "m", "--data", "d", "--reward", "http://x:1/r"), "a server is '{server: http://x:1/r}'"),
        (("--model", "m", "--data", "d", "--reward", "{judge: "), "--reward: not valid YAML"),
        (("--model", "m", "--data", "d", "--method", "metapo2"), "did you mean 'metapo'?"),
        (("--model", "m", "--data", "d", "--method", "dpo", "--machine", "h10x8"), "h100"),
    ],
)
def test_init_names_what_is_missing(
    given: tuple[str, ...], told: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert status("init", *given) == 2
    assert told in capsys.readouterr().err
    assert not (folder / "recipe.yaml").exists()


def test_init_asks(policy: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([policy, "pairs.jsonl", "kto", ""])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert status("init", "--out", "mine.yaml") == 0
    recipe = load_recipe(folder / "mine.yaml")
    assert (recipe.method, recipe.reward, recipe.output_dir) == ("kto", None, "runs/mine")
