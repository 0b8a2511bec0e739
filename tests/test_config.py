"""Recipes: every wrong key is named with the nearest valid one, and nothing wrong is passed on in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from adaptpo.choices.method import Method
from adaptpo.choices.objectives import DPO, SimPO
from adaptpo.config.base import is_special_reward
from adaptpo.config.recipe import AlignmentConfig, Recipe, load_recipe
from adaptpo.config.sections import OWNED_TRAINING_ARGUMENTS
from adaptpo.errors import ConfigError
from adaptpo.methods import METHODS
from adaptpo.methods.build import build_method

NEEDED = {"model": "m", "data": "d.jsonl", "output_dir": "o"}


def load(folder: Path, text: str = "", *assignments: str) -> Recipe:
    path = folder / "recipe.yaml"
    needed = {key: value for key, value in NEEDED.items() if not text.startswith(f"{key}:")}
    path.write_text(yaml.safe_dump(needed) + text, encoding="utf-8")
    return load_recipe(path, list(assignments))


def method_of(folder: Path, text: str = "", *assignments: str) -> Method:
    return build_method(load(folder, text, *assignments))


# --- the number of fresh responses ---


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("method: pool_kto", 2),
        ("method: two_stage", 2),
        ("method: metaapo", 8),
        ("method: {name: pool_kto, num_generations: 6}", 6),
        ("method: pool_kto\ngeneration: {num_generations: 4}", 4),
        ("method: {name: metaapo, num_generations: 6}\ngeneration: {num_generations: 4}", 6),
        ("method: {name: metaapo_random, num_generations: 4, pairing: offline_and_online}", 4),
        ("method: {name: dpo, selection: all, pairing: online}\ngeneration: {num_generations: 4}", 4),
        ("method: {name: dpo, selection: all, pairing: online}", 8),
        ("method: {name: dpo, selection: all, pairing: nested_pool}", 2),
        ("method: {name: metaapo, num_generations: 4, pairing: {name: nested_pool, num_generations: 3}}", 3),
        ("method: {name: metaapo, pairing: offline}\ngeneration: {num_generations: 4}", 0),
    ],
)
def test_the_most_specific_number_of_responses_holds(text: str, count: int, tmp_path: Path) -> None:
    """The pairing's own, then the method's, then the recipe's; without any, the method's or the pairing's default."""
    assert method_of(tmp_path, text).pairing.num_generations == count


# --- unknown keys ----------------------------------------------------------------------------------------------------

UNKNOWN = {
    "num_iteration: 2": "unknown key 'num_iteration': did you mean 'num_iterations'?",
    "data: {path: d, splt: test}": "unknown key 'data.splt': did you mean 'split'?",
    "eval_data: {path: d, max_prompt: 3}": "unknown key 'eval_data.max_prompt': did you mean 'max_prompts'?",
    "generation: {temprature: 1}": "unknown key 'generation.temprature': did you mean 'temperature'?",
    "generation: {num_generation: 4}": "unknown key 'generation.num_generation': did you mean 'num_generations'?",
    "meta: {learnin_rate: 1}": "unknown key 'meta.learnin_rate': did you mean 'learning_rate'?",
    "training: {lerning_rate: 1}": "unknown key 'training.lerning_rate': did you mean 'learning_rate'?",
    "training: {zzz: 1}": "unknown key 'training.zzz': see the fields of TrainingArguments",
    "reward_training: {max_lenght: 1}": "unknown key 'reward_training.max_lenght': did you mean 'max_length'?",
    "peft: {lora_alfa: 1}": "unknown key 'peft.lora_alfa': did you mean 'lora_alpha'?",
    "method: metaapoo": "unknown method 'metaapoo': did you mean 'metaapo'?",
    "method: {name: metaapo, num_generation: 4}": (
        "unknown key 'method.num_generation': did you mean 'num_generations'?"
    ),
    "method: {name: metaapo, objective: smpo}": "unknown objective 'smpo': did you mean 'simpo'?",
    "method: {name: dpo, objective: {name: simpo, gama: 1}}": (
        "unknown key 'method.objective.gama': did you mean 'gamma'?"
    ),
}


@pytest.mark.parametrize("text", UNKNOWN)
def test_unknown_key_is_named_with_the_nearest(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        method_of(tmp_path, text)
    assert str(caught.value) == UNKNOWN[text]


def test_name_like_no_other_gets_the_whole_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"unknown method 'zzz': valid are: {', '.join(sorted(METHODS))}"):
        method_of(tmp_path, "method: zzz")
    with pytest.raises(ConfigError, match=r"unknown key 'meta\.zzz': valid are: learning_rate, update_interval"):
        load(tmp_path, "meta: {zzz: 1}")


def test_every_wrong_key_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(modle="m", data={"path": "d"}, num_iterations=0, generation={"top_p": 2})
    assert sorted(str(caught.value).split("\n")) == [
        "'generation.top_p': Input should be less than or equal to 1 (found 2)",
        "'model' is missing",
        "'num_iterations': Input should be greater than 0 (found 0)",
        "'output_dir' is missing",
        "unknown key 'modle': did you mean 'model'?",
    ]


@pytest.mark.parametrize("section", ["training", "reward_training"])
@pytest.mark.parametrize("name", OWNED_TRAINING_ARGUMENTS)
def test_what_the_run_sets_itself_is_refused_with_the_remedy(section: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AlignmentConfig(output_dir="o", **{section: {name: 1}})
    assert str(caught.value) == f"{section}.{name} is not taken from a recipe: {OWNED_TRAINING_ARGUMENTS[name]}"


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {learning_rate: fast}", "'training.learning_rate': Input should be a valid number (found 'fast')"),
        ("training: {max_steps: 1.5}", "'training.max_steps': Input should be a valid integer"),
        ("reward_training: {learning_rate: [1]}", "'reward_training.learning_rate': Input should be a valid number"),
        ("peft: {r: big}", "'peft.r': Input should be a valid integer (found 'big')"),
        ("method: {name: metaapo, learning_rate: fast}", "'method.learning_rate': Input should be a valid number"),
        ("method: {name: metaapo, num_generations: 2.5}", "'method.num_generations': Input should be a valid integer"),
        ("method: {name: dpo, objective: {name: dpo, beta: x}}", "'method.objective.beta': Input should be a valid"),
        ("method: {num_generations: 4}", "'method' must be a name, or a mapping with `name` and arguments (found {'n"),
        ("method: {name: dpo, objective: 5}", "'method.objective' must be a name, or a mapping with `name`"),
        ("method: {name: [dpo]}", "'method' must be a name, or a mapping"),
        ("seed: -1", "'seed': Input should be greater than or equal to 0 (found -1)"),
        ("reference: first", "'reference': Input should be 'initial' or 'previous', or a section"),
        ("reference: {ref_model_sync_steps: 0}", "'reference.ref_model_sync_steps': Input should be greater than 0"),
        ("reference: {sync_steps: 3}", "unknown key 'reference.sync_steps': did you mean 'ref_model_sync_steps'?"),
        ("generation: {num_generations: 1}", "'generation.num_generations': Input should be greater than 1 (found 1)"),
        ("1: 2", "'1': Keys should be strings"),
    ],
)
def test_wrong_value_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        method_of(tmp_path, text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("text", "value"), [("1e-6", 1e-6), ("5E+2", 500.0), ("-.5e1", -5.0), ("1.0e-6", 1e-6)])
def test_numbers_with_an_exponent_are_numbers(text: str, value: float, tmp_path: Path) -> None:
    """To PyYAML 1e-6 is a string, with which the optimizer would fail hours later."""
    for recipe in (
        load(tmp_path, f"chat_template_kwargs: {{x: {text}}}"),
        load(tmp_path, "", f"chat_template_kwargs.x={text}"),
    ):
        assert recipe.chat_template_kwargs == {"x": value}
        assert type(recipe.chat_template_kwargs["x"]) is float


@pytest.mark.parametrize("text", ["e5", "1e", "1e-6b", "'1e-6'", "1-e6", "0x1e6z"])
def test_what_only_looks_like_a_number_stays_text(text: str, tmp_path: Path) -> None:
    assert load(tmp_path, "", f"model={text}").model == text.strip("'")


def test_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert (recipe.num_iterations, recipe.seed, recipe.method, recipe.reward) == (3, 0, "metaapo", None)
    assert (recipe.max_completion_length, recipe.max_length, recipe.generation.max_new_tokens) == (None, None, 512)
    usual = {"path": "d.jsonl", "name": None, "split": "train", "text_format": "auto", "columns": {}, "streaming": None}
    assert recipe.data.model_dump() == usual | dict.fromkeys(["filter", "max_rows", "weight", "sets"])


# --- the method ------------------------------------------------------------------------------------------------------


def test_method_takes_what_other_sections_say(tmp_path: Path) -> None:
    text = "generation: {num_generations: 4}\nmeta: {learning_rate: 0.01, update_interval: 3}"
    method = method_of(tmp_path, text)
    learner = method.learners()[0]
    assert method.pairing.num_generations == 4
    assert (learner.learning_rate, learner.update_interval) == (0.01, 3)


def test_arguments_of_the_method_itself_come_first(tmp_path: Path) -> None:
    text = (
        "generation: {num_generations: 4}\nmethod: {name: metaapo, num_generations: 6, objective: {name: dpo, beta: 1}}"
    )
    method = method_of(tmp_path, text)
    assert method.pairing.num_generations == 6 and method.objective == DPO(beta=1)


def test_sections_that_a_method_does_not_need_are_left_aside(tmp_path: Path) -> None:
    assert method_of(tmp_path, "method: dpo\nmeta: {update_interval: 3}").name == "dpo"


# --- --set -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("num_iterations=5", {"num_iterations": 5}),
        ("generation.top_k=7", {"generation": {"top_k": 7}}),
        ("training.learning_rate=1e-6", {"training": {"learning_rate": 1e-6}}),
        ("peft={r: 4, target_modules: [q_proj]}", {"peft": {"r": 4, "target_modules": ["q_proj"]}}),
        ("reward=python:a.b:c", {"reward": "python:a.b:c"}),
        ("output_dir=a=b", {"output_dir": "a=b"}),
        ("show_progress=false", {"show_progress": False}),
        ("peft=null", {"peft": None}),
        ("data.split=test", {"data": {"path": "d.jsonl", "split": "test"}}),
        ("data=other.jsonl", {"data": {"path": "other.jsonl", "split": "train"}}),
        ("method.num_generations=4", {"method": {"name": "metaapo", "num_generations": 4}}),
    ],
)
def test_set_overrides_a_key(assignment: str, expected: dict[str, Any], tmp_path: Path) -> None:
    dumped = load(tmp_path, "method: metaapo\n", assignment).model_dump()
    for key, value in expected.items():
        if isinstance(value, dict) and key not in ("peft", "method", "training"):
            assert value.items() <= dumped[key].items()
        else:
            assert dumped[key] == value


def test_set_of_an_objective_inside_a_method(tmp_path: Path) -> None:
    text = "method: {name: metaapo, objective: simpo}"
    assert method_of(tmp_path, text, "method.objective.beta=4").objective == SimPO(beta=4)
    assert method_of(tmp_path, "method: dpo", "method.objective={name: dpo, beta: 0.3}").objective == DPO(beta=0.3)


def test_later_assignments_win_and_earlier_ones_stay(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, "generation: {top_k: 1}", "generation.top_k=2", "generation.top_p=0.5", "generation.top_k=3"
    )
    assert (recipe.generation.top_k, recipe.generation.top_p) == (3, 0.5)


def test_set_fills_an_empty_section(tmp_path: Path) -> None:
    assert load(tmp_path, "generation:\n", "generation.top_k=4").generation.top_k == 4


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "--set takes key=value, for instance .*; found 'seed'"),
        ("=3", "--set takes key=value, .*found '=3'"),
        ("seed=[1", r"--set seed=\[1: the value is not YAML"),
        ("shard_size.x=1", "--set shard_size.x=1: 'shard_size' is not a section"),
        ("sed=3", "unknown key 'sed': did you mean 'seed'?"),
        ("generation.top=3", "unknown key 'generation.top': did you mean 'top_p'?"),
        ("model.x=1", "'model': Input should be a valid string"),
    ],
)
def test_wrong_assignment_is_named(assignment: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        load(tmp_path, "shard_size: 8", assignment)


# --- files and paths -------------------------------------------------------------------------------------------------


def test_inputs_are_found_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not exist there stays as it is: a path from the working folder, or a hub id."""
    home, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    for folder in (home / "policy", elsewhere / "policy", elsewhere / "reward"):
        folder.mkdir(parents=True)
    (home / "pairs.jsonl").write_text("")
    monkeypatch.chdir(elsewhere)
    text = "model: policy\nreward: reward\ndata: pairs.jsonl\neval_data: {path: org/held-out}\noutput_dir: runs/one\n"
    (home / "recipe.yaml").write_text(text + "method: {name: metaapo_fixed, learner: policy}\n")
    recipe = load_recipe(home / "recipe.yaml")
    assert recipe.model == str(home / "policy")
    assert recipe.data.path == str(home / "pairs.jsonl")
    assert recipe.method == {"name": "metaapo_fixed", "learner": str(home / "policy")}
    assert (recipe.reward, recipe.output_dir) == ("reward", "runs/one")
    assert recipe.eval_data is not None and recipe.eval_data.path == "org/held-out"


@pytest.mark.parametrize("reward", ["train", "python:rewards:length"])
def test_special_rewards_are_no_paths(reward: str, tmp_path: Path) -> None:
    (tmp_path / reward).mkdir()
    assert is_special_reward(reward) and not is_special_reward("org/trainer")
    assert load(tmp_path, f"reward: '{reward}'").reward == reward


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1\nb: 2", r"recipe\.yaml is not a YAML file: .*line 2"),
        (b"\xff\xfe\x00a", r"recipe\.yaml is not a YAML file"),
        (b"", r"recipe\.yaml holds no recipe; it needs at least model, data and output_dir"),
        (b"- a\n", r"recipe\.yaml holds no recipe"),
        (b"model: m\n", "'output_dir' is missing\n'data' is missing"),
    ],
)
def test_files_that_are_no_recipes(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_recipe(path)


def test_missing_recipes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"no recipe at .*none\.yaml"):
        load_recipe(tmp_path / "none.yaml")
    for path in (tmp_path, tmp_path / "file" / "recipe.yaml"):
        with pytest.raises(ConfigError, match=f"cannot read the recipe {path}: "):
            load_recipe(path)


def test_num_generations_in_python_is_the_methods() -> None:
    with pytest.raises(ConfigError, match=r"in Python .* methods.metaapo\(num_generations=8\)"):
        AlignmentConfig(output_dir="x", generation={"num_generations": 2})
