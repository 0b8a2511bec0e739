"""The command line: what is wrong with the input is said in one message with its remedy, and exit status 2."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import adaptpo
from adaptpo.cli import build_parser, main
from adaptpo.cli.flags import as_assignments
from adaptpo.config.base import dotted_keys
from adaptpo.config.recipe import Recipe as RecipeSettings
from adaptpo.methods import METHODS
from adaptpo.run.directory import open_run
from tests.tiny import byte_tokenizer, preference_rows, save_policy, save_reward_model, write_jsonl

HEAVY = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "vllm", "wandb", "pandas", "matplotlib"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    larger = byte_tokenizer()
    larger.add_tokens(["<more>"])
    save_policy(folder / "larger tokenizer")
    larger.save_pretrained(folder / "larger tokenizer")
    return {
        "policy": save_policy(folder / "policy"),
        "no template": save_policy(folder / "no template", chat=False),
        "larger tokenizer": str(folder / "larger tokenizer"),
        "reward": save_reward_model(folder / "reward"),
        "two labels": save_reward_model(folder / "two labels", num_labels=2),
    }


REWARDS = """
def length(completions, **_):
    return [float(len(c[-1]["content"])) for c in completions]
def raises(completions, **_):
    return [c["score"] for c in completions]
def too_few(completions, **_):
    return [1.0]
def interrupted(completions, **_):
    raise KeyboardInterrupt
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a data set and a module of reward functions, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "shop_rewards.py").write_text(REWARDS)
    write_jsonl(tmp_path / "pairs.jsonl", preference_rows(3))
    yield tmp_path
    sys.modules.pop("shop_rewards", None)


Recipe = Callable[..., str]


@pytest.fixture
def recipe(folder: Path, models: dict[str, str]) -> Recipe:
    """Writes a recipe that takes about a second to run; returns its path."""

    def write(**changes: Any) -> str:
        values = {
            "model": models["policy"],
            "data": "pairs.jsonl",
            "output_dir": str(folder / "run"),
            "method": "dpo",
            "num_iterations": 1,
            "warmup_epochs": 0,
            "max_prompt_length": 64,
            "generation": {"max_new_tokens": 2, "num_generations": 2},
            "training": {"learning_rate": 1e-3},
            "show_progress": False,
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values | changes))
        return str(folder / "recipe.yaml")

    return write


def status_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The message of a command that must end with status 2."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert status_of(*arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("adaptpo: ") and "Traceback" not in error
        return error

    return run


# --- it works --------------------------------------------------------------------------------------------------------


def test_train_says_where_the_model_is(recipe: Recipe, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Started again it finds everything done."""
    for _ in range(2):
        assert status_of("train", recipe()) == 0
        output = capsys.readouterr().out
        assert f"The aligned model is in {folder}/run/final" in output and f"adaptpo report {folder}/run" in output
    assert (folder / "run/final/config.json").exists()


def test_set_reaches_the_run(recipe: Recipe, folder: Path) -> None:
    arguments = ["--set", "method.objective={name: simpo, beta: 4}", "--set", f"output_dir={folder}/other"]
    assert status_of("train", recipe(), *arguments) == 0
    stored = yaml.safe_load((folder / "other/config.yaml").read_text())
    assert stored["method"]["choices"]["objective"] == "SimPO(beta=4, gamma=0.6)"
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("flags", "assignments"),
    [
        (["--training.learning_rate", "1e-6"], ["training.learning_rate=1e-6"]),
        (["--training.learning_rate=1e-6", "--seed=3"], ["training.learning_rate=1e-6", "seed=3"]),
        (["--training.weight_decay", "-1"], ["training.weight_decay=-1"]),
        (["--training.bf16", "--output-dir", "runs/x"], ["training.bf16=true", "output_dir=runs/x"]),
        (["--generation.arguments=--max-num-seqs 4"], ["generation.arguments=--max-num-seqs 4"]),
        (["--set", "a.b=--c", "--trust_remote_code"], ["a.b=--c", "trust_remote_code=true"]),
    ],
)
def test_flags_are_settings(flags: list[str], assignments: list[str]) -> None:
    """A recipe's path keeps its place, before flags or after them."""
    expected = [part for assignment in assignments for part in ("--set", assignment)]
    assert as_assignments(["r.yaml", *flags], {"--set", "--no-code"}) == ["r.yaml", *expected]


def test_train_without_a_recipe(folder: Path, models: dict[str, str]) -> None:
    flags = {"model": models["policy"], "data": "pairs.jsonl", "method": "ipo", "output_dir": "runs/ipo"}
    flags |= {"num_iterations": "1", "training.learning_rate": "1e-3", "show-progress": "false"}
    arguments = [word for name, value in flags.items() for word in (f"--{name}", value)]
    assert status_of("train", *arguments) == 0
    stored = yaml.safe_load((folder / "runs/ipo/config.yaml").read_text())
    assert (stored["method"]["name"], stored["training"]["learning_rate"]) == ("ipo", 1e-3)


def test_a_flag_overrides_the_recipe(recipe: Recipe, folder: Path) -> None:
    assert status_of("train", recipe(), "--training.learning_rate", "2e-3", f"--output_dir={folder}/other") == 0
    stored = yaml.safe_load((folder / "other/config.yaml").read_text())
    assert stored["training"]["learning_rate"] == 2e-3


@pytest.mark.parametrize("command", [("train",), ("plan", "--machine", "h100x8"), ("check", "--rows", "1"), ("stage",)])
def test_every_command_with_a_recipe_takes_settings_as_flags(
    command: tuple[str, ...], recipe: Recipe, models: dict[str, str], refusal: Callable[..., str]
) -> None:
    """The command's own flags stay what they are, and a recipe is not needed."""
    given = (command[0], recipe(reward=models["reward"]), *command[1:])
    assert "generation.top_p" in refusal(*given, "--generation.top_p", "2")
    flags = ("--model", models["policy"], "--data", "pairs.jsonl", "--reward", models["reward"])
    assert "generation.top_p" in refusal(*command, *flags, "--output-dir=runs/x", "--generation.top_p=2")


def test_check_and_plan_without_a_recipe(
    folder: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--model", models["policy"], "--data", "pairs.jsonl", "--method", "dpo", "--output_dir", "runs/a b")
    flags += ("--show_progress", "false")
    assert status_of("check", *flags, "--examples", "0") == 0
    assert "adaptpo train --model=" in (said := capsys.readouterr().out) and "'--output_dir=runs/a b'" in said
    assert status_of("plan", *flags, "--json") == 0
    assert json.loads(capsys.readouterr().out)["facts"]["pairs"] == 3


def test_report_of_a_run(recipe: Recipe, folder: Path, undrawn: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("train", recipe()) == 0
    capsys.readouterr()
    assert status_of("report", str(folder / "run")) == 0
    assert Path(capsys.readouterr().out.strip()).read_text().startswith("<!")


# --- what is wrong with the recipe and the data ----------------------------------------------------------------------


def test_unknown_key(recipe: Recipe, folder: Path, refusal: Callable[..., str]) -> None:
    assert refusal("train", recipe(num_iteration=3)).endswith("'num_iteration': did you mean 'num_iterations'?\n")
    assert "did you mean 'top_p'?" in refusal("train", recipe(), "--set", "generation.topp=1")
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("temprature=2", "did you mean 'generation.temperature'?"),
        ("num_iterationz=2", "did you mean 'num_iterations'?"),
        ("learning_rte=1", "did you mean 'training.learning_rate'?"),
        ("generation.learning_rat=1", "did you mean 'training.learning_rate'?"),
        ("training.temperature=1", "set generation.temperature"),
        ("learning_rate=1", "set training.learning_rate"),
    ],
)
def test_a_mistyped_key_is_found_in_its_section(
    flag: str, hint: str, recipe: Recipe, refusal: Callable[..., str]
) -> None:
    assert hint in refusal("train", recipe(), "--set", flag)
    assert hint in refusal("train", recipe(), f"--{flag}")


def test_a_refused_run_leaves_no_folder(recipe: Recipe, folder: Path, refusal: Callable[..., str]) -> None:
    """Also where it is refused by a check that needs the run's folder, or after that of its models."""
    out = str(folder / "runs/x")
    for changes in ({"model": str(folder / "none")}, {"method": "online_dpo"}, {"data": "none.jsonl"}):
        refusal("train", recipe(output_dir=out, **changes))
        assert not (folder / "runs").exists(), changes
    (folder / "runs/other").mkdir(parents=True)
    refusal("train", recipe(output_dir=out, method="online_dpo"))
    assert [path.name for path in (folder / "runs").iterdir()] == ["other"]


def test_a_run_refused_for_its_rows_leaves_what_was_there(
    recipe: Recipe, folder: Path, refusal: Callable[..., str]
) -> None:
    """Reading the data is a phase that has begun, and a refusal in it leaves nothing either."""
    (folder / "one.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    out = folder / "runs/x"
    refusal("train", recipe(output_dir=str(out), data="one.jsonl"))
    assert not (folder / "runs").exists()
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    refusal("train", recipe(output_dir=str(out), data="one.jsonl"))
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_bf16_without_a_gpu_names_the_key_and_the_remedy(recipe: Recipe, refusal: Callable[..., str]) -> None:
    told = refusal("train", recipe(), "--training.bf16=true", "--training.use_cpu=false")
    assert "training.bf16" in told and "training.use_cpu to true" in told


def test_missing_recipe(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "no recipe at" in refusal("train", str(tmp_path / "none.yaml"))


def test_missing_column(recipe: Recipe, folder: Path, refusal: Callable[..., str]) -> None:
    write_jsonl(folder / "pairs.jsonl", [{"question": "a", "chosen": "b", "rejected": "c"}])
    assert "rename `question` to `prompt`" in refusal("train", recipe())


def test_malformed_line_is_named_and_can_be_mended(recipe: Recipe, folder: Path, refusal: Callable[..., str]) -> None:
    """With the data mended the same command goes through: the run had done nothing yet."""
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    (folder / "pairs.jsonl").write_text("\n".join([lines[0], '{"prompt": ', lines[2]]) + "\n")
    message = refusal("train", recipe())
    assert "pairs.jsonl, line 2: not valid JSON" in message and "fix or delete this line" in message
    (folder / "pairs.jsonl").write_text("\n".join([lines[0], lines[2]]) + "\n")
    assert status_of("train", recipe()) == 0


def test_all_rows_dropped(recipe: Recipe, folder: Path, refusal: Callable[..., str]) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": "", "rejected": "b"}]
    write_jsonl(folder / "pairs.jsonl", [rows[0], *rows])
    message = refusal("train", recipe())
    assert "none of 3 rows can be used" in message
    assert "2 x chosen equals rejected; 1 x empty chosen response" in message
    dropped = [json.loads(line) for line in (folder / "run/dropped.jsonl").read_text().splitlines()]
    assert [record["row"] for record in dropped] == [0, 1, 2]


def test_missing_data(recipe: Recipe, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped file name is no hub id: asking the hub takes many seconds where there is no network."""
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_, **__: pytest.fail("asked the hub"))
    assert "none.jsonl: no such file. A path is looked up" in refusal("train", recipe(data="none.jsonl"))


# --- what is wrong with the models -----------------------------------------------------------------------------------


def test_missing_model(recipe: Recipe, folder: Path, refusal: Callable[..., str]) -> None:
    missing = str(folder / "none")
    for changes in ({"model": missing}, {"reward": missing, "method": "online_dpo"}):
        message = refusal("train", recipe(**changes))
        assert f"no model at '{missing}'" in message and "`save_pretrained`" in message


def test_chats_without_template(recipe: Recipe, models: dict[str, str], refusal: Callable[..., str]) -> None:
    message = refusal("train", recipe(model=models["no template"]))
    assert "no chat template" in message and "set tokenizer.chat_template" in message


def test_tokenizer_larger_than_the_embedding(
    recipe: Recipe, models: dict[str, str], refusal: Callable[..., str]
) -> None:
    message = refusal("train", recipe(model=models["larger tokenizer"]))
    size = len(byte_tokenizer())
    assert f"embedding has {size} rows" in message and f"resize_token_embeddings({size + 1})" in message


def test_reward_model_with_two_labels(recipe: Recipe, models: dict[str, str], refusal: Callable[..., str]) -> None:
    message = refusal("train", recipe(method="online_dpo", reward=models["two labels"]))
    assert "has 2 labels; a reward model has one" in message and "python:module:function" in message


def test_online_method_without_reward(recipe: Recipe, refusal: Callable[..., str]) -> None:
    assert "set `reward` to a reward model" in refusal("train", recipe(method="online_dpo"))


# --- reward functions ------------------------------------------------------------------------------------------------


def test_reward_function_that_raises(recipe: Recipe, refusal: Callable[..., str]) -> None:
    message = refusal("train", recipe(method="online_dpo", reward="python:shop_rewards:raises"))
    assert "reward function 'raises' raised TypeError" in message and "prompts 0 to 2" in message


def test_reward_function_that_returns_too_few(recipe: Recipe, refusal: Callable[..., str]) -> None:
    """Three prompts with two responses each."""
    message = refusal("train", recipe(method="online_dpo", reward="python:shop_rewards:too_few"))
    assert "'too_few' returned 1 values for 6 completions" in message and "one float per completion" in message


def test_unknown_reward_function(recipe: Recipe, refusal: Callable[..., str]) -> None:
    message = refusal("train", recipe(method="online_dpo", reward="python:shop_rewards:size"))
    assert "module 'shop_rewards' has no 'size'" in message


def test_interruption_says_how_to_go_on(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(method="online_dpo", reward="python:shop_rewards:interrupted")
    assert status_of("train", path) == 130
    error = capsys.readouterr().err
    assert "interrupted; start the same command again to resume" in error and "Traceback" not in error


# --- the run directory -----------------------------------------------------------------------------------------------


def test_output_dir_of_another_run(recipe: Recipe, refusal: Callable[..., str]) -> None:
    assert status_of("train", recipe()) == 0
    message = refusal("train", recipe(seed=4, training={"learning_rate": 2e-3}))
    assert "  seed: 0 in the run, 4 now\n" in message
    assert "  training.learning_rate: 0.001 in the run, 0.002 now\n" in message
    assert "choose another output_dir" in message


def test_changed_data_is_another_run(recipe: Recipe, folder: Path, refusal: Callable[..., str]) -> None:
    assert status_of("train", recipe()) == 0
    write_jsonl(folder / "pairs.jsonl", preference_rows(4))
    assert "  inputs.data: '" in refusal("train", recipe())


def test_output_dir_with_other_things(recipe: Recipe, folder: Path, refusal: Callable[..., str]) -> None:
    assert "holds no run (found pairs.jsonl, recipe.yaml, shop_rewards.py)" in refusal(
        "train", recipe(output_dir=str(folder))
    )


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


def test_second_command_on_a_run_names_the_process_of_the_first(
    recipe: Recipe, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """tests/test_run_directory.py holds the lock in another process."""
    with open_run(folder / "run"):
        assert status_of("train", recipe()) == 2
    output = capsys.readouterr()
    assert f"process {os.getpid()} is working on {folder}/run" in output.err
    assert "Traceback" not in output.err and output.out == ""


# --- help, tables, imports -------------------------------------------------------------------------------------------


def commands(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and every action below it."""
    yield path
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from commands(below, (*path, name))


@pytest.mark.parametrize("command", commands(build_parser()), ids=lambda c: " ".join(c) or "adaptpo")
def test_help(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*command, "--help") == 0
    output = capsys.readouterr().out
    assert output.startswith(" ".join(["usage: adaptpo", *command]))


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert {"train", "methods", "report", "sandbox", "demo"} <= set(listed)


def test_help_of_train_is_short_and_help_all_has_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("train", "--help") == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 30 and "--help-all" in short
    assert status_of("train", "--help-all") == 0
    shown = capsys.readouterr().out
    keys = [line.split()[0] for line in shown.splitlines() if line.startswith("--")]
    assert keys == [f"--{key}" for key in dotted_keys(RecipeSettings)]
    assert "--generation.temperature  (number, default 1.0)\n    Sampling temperature; 0 is greedy." in shown
    assert "lr_scheduler_type" in shown and "save_total_limit" not in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--version") == 0
    assert capsys.readouterr().out.strip() == adaptpo.__version__


@pytest.mark.parametrize("arguments", [(), ("trian",), ("train",)])
def test_wrong_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*arguments) == 2
    assert "usage: adaptpo" in capsys.readouterr().err


def test_methods_prints_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("methods") == 0
    words = capsys.readouterr().out.split()
    assert set(METHODS) <= set(words)


def test_methods_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("methods", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(METHODS)
    assert all(row[axis] for row in rows for axis in ("selection", "pairing", "objective", "weighting"))


def test_importing_and_asking_for_help_is_light() -> None:
    """`adaptpo --help` must not wait for torch, and no extra may be needed for it."""
    code = "import sys, adaptpo, adaptpo.cli as cli; cli.build_parser(); print(*(n.split('.')[0] for n in sys.modules))"
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert not HEAVY & set(result.stdout.split())
