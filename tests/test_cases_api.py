"""Habits from TRL: what the Python API and the recipe take, use, or refuse with the remedy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch
import yaml
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.choices.objectives import DPO, IPO, ORPO
from adaptpo.config.recipe import load_recipe
from adaptpo.data.limits import NO_ROOM
from adaptpo.errors import AdaptpoError, ConfigError, DataError
from adaptpo.run.files import JsonLines, read_rows
from adaptpo.types import PairLogps
from tests.tiny import byte_tokenizer, preference_rows, save_policy, tiny_model, vowel_reward

ROWS = [{"prompt": "say ", "chosen": f"tea {i}", "rejected": "ice"} for i in range(4)]
QUICK: dict[str, Any] = {"num_iterations": 1, "max_prompt_length": 64, "generation": {"max_new_tokens": 10}}
QUICK |= {"show_progress": False, "training": {"report_to": "none"}}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


def trainer(policy: Any, out: Path, **changes: Any) -> AlignmentTrainer:
    usual = {"model": policy, "args": AlignmentConfig(output_dir=str(out), **QUICK), "method": methods.dpo()}
    return AlignmentTrainer(**(usual | {"train_dataset": ROWS} | changes))


def offline(out: Path) -> list[dict[str, Any]]:
    return list(read_rows(out / "data" / "offline.parquet"))


# What TRL's users pass to a trainer


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "dpo"},
        {"method": methods.dpo},
        {"train_dataset": pandas.DataFrame(ROWS)},
        {"train_dataset": tuple(ROWS)},
        {"train_dataset": datasets.Dataset.from_list(ROWS)},
        {"train_dataset": datasets.Dataset.from_list(ROWS).to_iterable_dataset()},
    ],
    ids=["name", "function", "data frame", "tuple", "dataset", "iterable"],
)
def test_accepted(changes: dict[str, Any], policy: str, tmp_path: Path) -> None:
    trainer(policy, tmp_path / "run", **changes).train()
    assert [row["row"] for row in offline(tmp_path / "run")] == [0, 1, 2, 3]


def test_a_generator_is_read_once_and_kept(policy: str, tmp_path: Path) -> None:
    trainer(policy, tmp_path / "run", train_dataset=(row for row in ROWS)).train()
    assert len(offline(tmp_path / "run")) == 4


def test_settings_may_be_a_dict(policy: str, tmp_path: Path) -> None:
    trainer(policy, tmp_path / "run", args={"output_dir": str(tmp_path / "run"), **QUICK}).train()
    assert (tmp_path / "run" / "final" / "config.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "metaap"}, "unknown method 'metaap': did you mean 'metaapo'"),
        ({"method": 3}, "method is of type int; give for instance adaptpo.methods.metaapo()"),
        ({"args": TrainingArguments(output_dir="x")}, "args is of type TrainingArguments; give AlignmentConfig"),
        ({"args": {"output_dir": "x", "learning_rate": 1e-6}}, "'learning_rate': set training.learning_rate"),
        ({"train_dataset": ["a.jsonl", 5]}, "element 0 is of type str, and a row is a dict of columns"),
        ({"train_dataset": [ROWS[0], "text"]}, "element 1 is of type str"),
        ({"train_dataset": {"prompt": ["a"]}}, "cannot be of type dict; give a datasets.Dataset"),
        ({"train_dataset": 5}, "cannot be of type int; give a datasets.Dataset"),
        ({"eval_dataset": [{"path": "a.jsonl", "weights": 1}]}, "eval_dataset.a.weights': did you mean 'weight'"),
        ({"reward_funcs": "org/rm", "reward_processing_class": byte_tokenizer()}, "Save yours in that folder"),
        ({"peft_config": object()}, "peft_config is of type object; give a peft.LoraConfig"),
    ],
)
def test_refused_at_construction(changes: dict[str, Any], message: str, policy: str, tmp_path: Path) -> None:
    with pytest.raises(AdaptpoError) as caught:
        trainer(policy, tmp_path / "run", **changes)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_lora_config_is_taken_as_it_is(policy: str, tmp_path: Path) -> None:
    config = LoraConfig(r=2, lora_alpha=16, target_modules=["q_proj"])
    made = trainer(policy, tmp_path / "run", peft_config=config)
    assert made.args.peft == {"r": 2, "lora_alpha": 16, "target_modules": ["q_proj"]}
    made.train()
    assert (tmp_path / "run" / "final" / "adapter_config.json").exists()


# Objectives


def test_a_method_takes_the_settings_of_its_objective() -> None:
    assert methods.dpo(beta=0.05).objective == DPO(beta=0.05)
    assert methods.metaapo(beta=0.2, num_generations=4).objective == DPO(beta=0.2)
    assert methods.dpo(DPO(label_smoothing=0.1), beta=0.3).objective == DPO(beta=0.3, label_smoothing=0.1)
    assert methods.kto(beta=0.3).objective.beta == 0.3
    with pytest.raises(ConfigError, match="takes no argument 'betta': did you mean 'beta'"):
        methods.dpo(betta=0.1)


def test_a_recipes_method_takes_the_settings_of_its_objective(tmp_path: Path) -> None:
    from adaptpo.methods.build import build_method

    path = tmp_path / "recipe.yaml"
    path.write_text("{model: m, data: d.jsonl, output_dir: o, method: {name: dpo, beta: 0.05}}")
    assert build_method(load_recipe(path)).objective == DPO(beta=0.05)
    with pytest.raises(ConfigError, match=r"method\.beta"):
        build_method(load_recipe(path, ["method.beta=high"]))


def test_logged_rewards_are_trls() -> None:
    """TRL logs beta times the log-ratio for IPO, and beta times the mean log-prob for ORPO; the margins stay ours."""
    logps = PairLogps(*(torch.tensor([x]) for x in (-10.0, -12.0, 5.0, 6.0, -11.0, -11.0)))
    assert [x.item() for x in IPO(beta=0.1).rewards(logps)] == pytest.approx([0.1, -0.1])
    assert IPO(beta=0.1).margin(logps).item() == pytest.approx(0.1 / 5 + 0.1 / 6)
    assert [x.item() for x in ORPO(odds_weight=0.1).rewards(logps)] == pytest.approx([-0.2, -0.2])
    odds = math.exp(-2) / (1 - math.exp(-2))
    assert ORPO().margin(logps).item() == pytest.approx(math.log(odds) - math.log(odds), abs=1e-6)


# Keys that belong elsewhere


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 1e-6}, "unknown key 'learning_rate': set training.learning_rate"),
        ({"beta": 0.1}, "unknown key 'beta': set method.objective.beta"),
        ({"loss_type": "ipo"}, "the method is the loss"),
        ({"truncation_mode": "keep_end"}, "responses that are too long are cut at the end"),
        ({"lora_alpha": 16}, "set peft.lora_alpha"),
        ({"temperature": 0.7}, "set generation.temperature"),
        ({"eval_strategy": "steps"}, "set eval_data"),
        ({"training": {"beta": 0.1}}, "unknown key 'training.beta': set method.objective.beta"),
        ({"training": {"max_length": 512}}, "unknown key 'training.max_length': set max_length at the top"),
        ({"training": {"label_smoothing_factor": 0.1}}, "set method.label_smoothing"),
        ({"training": {"eval_steps": 5}}, "every iteration ends with an evaluation"),
        ({"training": {"save_only_model": True}}, "a run resumes from the state of its optimizer"),
        ({"generation": {"learning_rate": 1}}, "unknown key 'generation.learning_rate': set training.learning_rate"),
        ({"generaton": {}}, "did you mean 'generation'"),
    ],
)
def test_a_key_is_sent_where_it_belongs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AlignmentConfig(output_dir="x", **settings)
    assert message in str(caught.value)


# The tokenizer and its template


MESSAGES = [{"role": "user", "content": "say tea"}]
CHAT = {"prompt": MESSAGES, "chosen": [{"role": "assistant", "content": "tea"}]}
CHAT |= {"rejected": [{"role": "assistant", "content": "ice"}]}
BRACKETS = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
THINKING = (
    "{%- for m in messages %}{%- if m.role == 'assistant' and loop.last %}"
    "{{- '<|assistant|><think>\\n\\n</think>\\n\\n' + m.content + '<|end|>' }}"
    "{%- else %}{{- '<|' + m.role + '|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


@pytest.mark.parametrize("chat", [True, False], ids=["own template", "no template"])
def test_processing_class_beside_a_path_is_used(chat: bool, tmp_path: Path) -> None:
    given = byte_tokenizer()
    given.chat_template = BRACKETS
    out = tmp_path / "run"
    trainer(save_policy(tmp_path / "policy", chat=chat), out, processing_class=given, train_dataset=[CHAT] * 2).train()
    assert given.decode(offline(out)[0]["prompt_ids"]) == "[user]say tea<|end|>[assistant]"
    assert AutoTokenizer.from_pretrained(out / "final").chat_template == BRACKETS


def test_another_processing_class_is_another_run(policy: str, tmp_path: Path) -> None:
    trainer(policy, tmp_path / "run", processing_class=byte_tokenizer(), train_dataset=[CHAT] * 2).train()
    other = byte_tokenizer()
    other.chat_template = BRACKETS
    with pytest.raises(AdaptpoError, match="processing_class"):
        trainer(policy, tmp_path / "run", processing_class=other, train_dataset=[CHAT] * 2).train()


def thinking_policy(folder: Path) -> str:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = THINKING
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, {}),
        ({}, {"enable_thinking": False}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": True}),
        ({"chat_template_kwargs": {"enable_thinking": None}}, {"enable_thinking": False}),
    ],
    ids=["column", "key", "column wins", "null does not"],
)
def test_chat_template_kwargs(row: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    """TRL 1.16's DPOTrainer gives the same prompt and response."""
    args = AlignmentConfig(output_dir=str(tmp_path / "run"), chat_template_kwargs=settings, **QUICK)
    trainer(thinking_policy(tmp_path / "p"), tmp_path / "run", args=args, train_dataset=[CHAT | row] * 2).train()
    (first, _), tokenizer = offline(tmp_path / "run"), byte_tokenizer()
    assert tokenizer.decode(first["prompt_ids"]) == "<|user|>say tea<|end|><|assistant|><think>\n\n</think>\n\n"
    assert tokenizer.decode(first["chosen_ids"]) == "tea<|end|>"


def test_chat_template_kwargs_that_are_no_mapping_leave_the_row_out(policy: str, tmp_path: Path) -> None:
    rows = [CHAT | {"chat_template_kwargs": {}}, CHAT | {"chat_template_kwargs": "no"}]
    trainer(policy, tmp_path / "run", train_dataset=rows).train()
    (left_out,) = JsonLines(tmp_path / "run" / "dropped.jsonl").read()
    assert (left_out["row"], left_out["reason"]) == (
        1,
        "chat_template_kwargs is neither a mapping nor a JSON string of one",
    )


# Lengths


def test_no_response_is_cut_because_of_a_generation_setting(policy: str, tmp_path: Path) -> None:
    rows = [{"prompt": "say ", "chosen": "t" * 300, "rejected": "ice"}] * 2
    trainer(policy, tmp_path / "run", train_dataset=rows).train()
    assert [len(row["chosen_ids"]) for row in offline(tmp_path / "run")] == [301, 301]


@pytest.mark.parametrize(
    ("settings", "length"), [({"max_completion_length": 40}, 40), ({"max_length": 44}, 39), ({}, 507)]
)
def test_the_limits_of_responses(settings: dict[str, Any], length: int, policy: str, tmp_path: Path) -> None:
    """The prompt has 5 tokens with BOS, the model 512 positions."""
    rows = [{"prompt": "say ", "chosen": "t" * 900, "rejected": "ice"}] * 2
    args = AlignmentConfig(output_dir=str(tmp_path / "run"), **(QUICK | settings))
    trainer(policy, tmp_path / "run", args=args, train_dataset=rows).train()
    prompt = len(offline(tmp_path / "run")[0]["prompt_ids"])
    assert {len(row["chosen_ids"]) for row in offline(tmp_path / "run")} == {
        length + 5 - prompt if length != 40 else 40
    }
    assert not any(row["chosen_ended"] for row in offline(tmp_path / "run"))


def test_a_prompt_that_fills_max_length_is_left_out(policy: str, tmp_path: Path) -> None:
    rows = [ROWS[0], {"prompt": "p" * 50, "chosen": "a", "rejected": "b"}]
    args = AlignmentConfig(output_dir=str(tmp_path / "run"), **QUICK, max_length=30)
    trainer(policy, tmp_path / "run", args=args, train_dataset=rows).train()
    (left_out,) = JsonLines(tmp_path / "run" / "dropped.jsonl").read()
    assert left_out["reason"] == f"{NO_ROOM} (30)"


# Evaluation without a reward


def test_held_out_pairs_need_no_reward(policy: str, tmp_path: Path) -> None:
    trainer(policy, tmp_path / "run", eval_dataset=preference_rows(3, seed=5), train_dataset=preference_rows(8)).train()
    lines = [line for line in JsonLines(tmp_path / "run" / "metrics.jsonl").read() if "eval_loss" in line]
    assert [line["phase"] for line in lines] == ["evaluate/initial", "evaluate/iteration-0"]
    assert lines[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[0]["eval_rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert lines[1]["eval_rewards/margins"] == pytest.approx(
        lines[1]["eval_rewards/chosen"] - lines[1]["eval_rewards/rejected"], abs=1e-5
    )
    assert lines[1]["eval_loss"] != lines[0]["eval_loss"]


def test_held_out_prompts_need_a_reward(policy: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="eval_data holds no pairs, and the run has no reward"):
        trainer(policy, tmp_path / "run", eval_dataset=[{"prompt": "say "}]).train()


def test_with_a_reward_both_are_measured(policy: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer(policy, out, eval_dataset=preference_rows(3, seed=5), reward_funcs=vowel_reward).train()
    (first, *_) = [line for line in JsonLines(out / "metrics.jsonl").read() if line["phase"] == "evaluate/initial"]
    assert {"reward/mean", "eval_loss", "eval_rewards/accuracies"} <= first.keys()


def test_the_yaml_of_a_thinking_model_runs(tmp_path: Path) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(f"{line}\n" for line in (yaml_free(CHAT),) * 3))
    values = {"model": thinking_policy(tmp_path / "p"), "data": str(rows), "method": "dpo", **QUICK}
    values |= {"output_dir": str(tmp_path / "run"), "chat_template_kwargs": {"enable_thinking": False}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    AlignmentTrainer.from_recipe(load_recipe(tmp_path / "recipe.yaml")).train()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")


def yaml_free(row: dict[str, Any]) -> str:
    import json

    return json.dumps(row)
