"""Settings that transformers, peft or TRL would ignore, read in another way, or refuse hours later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig, TrainerCallback

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.choices.learners.base import Schedule
from adaptpo.config.recipe import Recipe
from adaptpo.data.mixture import Mixture
from adaptpo.distributed.launch import saves_parts
from adaptpo.errors import ConfigError
from adaptpo.methods.build import build_method
from adaptpo.models.loading import check_loading, leave_out_unread, load_causal_lm
from adaptpo.pipeline.context import Context
from adaptpo.pipeline.outcome import outcome
from adaptpo.pipeline.phases import reward
from adaptpo.report.comparing import stage_curves
from adaptpo.run.directory import open_run
from tests.tiny import byte_tokenizer, preference_rows, save_policy

LORA = {"r": 2, "target_modules": ["q_proj"]}
QUICK: dict[str, Any] = {"num_iterations": 1, "max_prompt_length": 64, "show_progress": False}


def reward_of_length(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


def trainer(policy: Any, out: Path, method: Any = "dpo", **settings: Any) -> AlignmentTrainer:
    generation = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    args = AlignmentConfig(output_dir=str(out), **(QUICK | {"generation": generation} | settings))
    return AlignmentTrainer(policy, args, method, preference_rows(4), reward_funcs=reward_of_length)


# Refused before anything is spent


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": {"lr_scheduler_type": "constant", "warmup_steps": 5}}, "constant_with_warmup"),
        (
            {"training": {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"num_cycles": 2}}},
            "constant_with_warmup reads none",
        ),
        ({"training": {"optim": "sgd", "adam_beta1": 0.5}}, "training.adam_beta1: the optimizer sgd does not read it"),
        ({"peft": LORA | {"target_modules": ["q_proj", "gate_up"]}}, "no module 'gate_up'; it has .*q_proj"),
        ({"peft": LORA | {"modules_to_save": ["lm_haed"]}}, "peft.modules_to_save: the model has no module 'lm_haed'"),
        (
            {"model_init_kwargs": {"dtype": "float16"}, "training": {"fp16": True}},
            "model_init_kwargs.dtype makes them float16; leave dtype out",
        ),
    ],
    ids=["warm-up", "scheduler", "Adam", "target", "saved", "fp16"],
)
def test_a_setting_without_effect_is_refused(
    settings: dict[str, Any], message: str, policy: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(policy, tmp_path / "run", **settings).train()
    assert not (tmp_path / "run" / "data").exists()


def test_zero_steps_are_refused(tmp_path: Path) -> None:
    """transformers would train all epochs."""
    with pytest.raises(ConfigError, match=r"training.max_steps is 0: .* no limit"):
        AlignmentConfig(output_dir=str(tmp_path), training={"max_steps": 0})


@pytest.mark.parametrize("peft", [LORA | {"init_lora_weights": "pissa"}, LORA | {"bias": "lora_only"}], ids=str)
def test_a_reference_below_an_adapter_is_the_initial_model(peft: dict[str, Any], policy: str, tmp_path: Path) -> None:
    """TRL adds a second adapter, whose initialization would change the model below both once more."""
    with pytest.raises(ConfigError, match="takes the model below the adapter as its reference"):
        trainer(policy, tmp_path / "run", methods.grpo(num_generations=2), peft=peft).train()


def test_the_reference_adapter_is_no_part_of_the_model(policy: str, tmp_path: Path) -> None:
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    out = (
        trainer(
            policy, tmp_path / "run", methods.grpo(num_generations=2), peft=LORA, reference="previous", training=batch
        )
        .train()
        .folder
    )
    assert (out / "adapter_config.json").exists() and not (out / "ref").exists()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"optim_args": "foo=1"}, "reward_training.optim_args: the optimizer .* reads no foo"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "reward_training.lr_scheduler_kwargs: the scheduler cosine_with"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 3}, "reward_training.warmup_steps"),
    ],
    ids=str,
)
def test_settings_of_the_reward_model_are_checked_first(
    own: dict[str, Any], message: str, policy: str, tmp_path: Path
) -> None:
    short = {"generation": {"max_new_tokens": 8}}
    args = AlignmentConfig(output_dir=str(tmp_path / "run"), reward_training=own, **QUICK, **short)
    with pytest.raises(ConfigError, match=message):
        AlignmentTrainer(policy, args, "online_dpo", preference_rows(4), reward_funcs="train").train()
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize(("given", "message"), [(None, "the checkpoint's"), (True, "quantization_config is set")])
def test_quantized_weights_need_an_adapter(given: bool | None, message: str) -> None:
    """A quantized checkpoint says so in its own configuration."""
    quantization = {"quant_method": "gptq", "bits": 4}
    config = PretrainedConfig(**({} if given else {"quantization_config": quantization}))
    with pytest.raises(ConfigError, match=f"{message}.* set peft"):
        check_loading(config, {"quantization_config": quantization} if given else {}, adapted=False)
    check_loading(config, {"quantization_config": {"quant_method": "mxfp4", "dequantize": True}}, adapted=False)


@pytest.mark.parametrize(
    ("stage", "gathers", "refused"),
    [(3, False, True), (3, True, False), (2, False, False), (3, "auto", False)],
    ids=str,
)
def test_a_file_of_deepspeed_has_to_gather_weights(
    stage: int, gathers: bool | str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it says `auto`, accelerate's own setting holds."""
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", str(gathers == "auto").lower())
    settings = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": gathers}
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": settings}))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero.json"))
    assert saves_parts() == refused


# Announced


def test_half_precision_weights_are_doubted(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step of 5e-7 rounds away in bfloat16."""
    trainer(policy, tmp_path / "run", model_init_kwargs={"dtype": "bfloat16"}, show_progress=True).train()
    assert "model_init_kwargs.dtype makes the weights bfloat16" in "".join(capsys.readouterr())
    trainer(policy, tmp_path / "lora", model_init_kwargs={"dtype": "bfloat16"}, peft=LORA, show_progress=True).train()
    assert "model_init_kwargs.dtype makes" not in "".join(capsys.readouterr())


class Evaluated(TrainerCallback):
    def on_evaluate(self, *_: Any, **__: Any) -> None: ...


def test_an_event_that_never_comes_is_announced(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = AlignmentConfig(output_dir=str(tmp_path), **QUICK)
    AlignmentTrainer(policy, args, "dpo", preference_rows(4), callbacks=[Evaluated])
    assert "on_evaluate of Evaluated is never called" in capsys.readouterr().err


def test_peft_says_what_it_ignores(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(policy, tmp_path / "run", peft=LORA | {"exclude_modules": ["nowhere"]}).train()
    assert "no modules were excluded" in capsys.readouterr().err


# Used


def test_settings_of_sampling_that_nothing_reads_do_not_end_a_run(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers does not save a temperature without `do_sample` once the pad token is another."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    stored = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": model.config.eos_token_id}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(stored))
    out = trainer(str(tmp_path / "model"), tmp_path / "run", show_progress=True).train().folder
    assert "generation_config.json has temperature, top_p" in capsys.readouterr().out
    GenerationConfig.from_pretrained(out).validate(strict=True)
    load_causal_lm(str(out), {})


@pytest.mark.parametrize(
    ("stored", "left_out"),
    [
        ({"temperature": 0.9, "do_sample": True}, []),
        ({"temperature": 0.9}, ["temperature"]),
        ({"length_penalty": 2.0}, ["length_penalty"]),
        ({"length_penalty": 2.0, "num_beams": 2}, []),
    ],
    ids=str,
)
def test_what_a_generation_config_is_saved_without(stored: dict[str, Any], left_out: list[str]) -> None:
    config = GenerationConfig(**stored)
    assert leave_out_unread(config) == left_out
    config.validate(strict=True)


def test_the_reward_model_reads_by_the_given_tokenizer(policy: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with open_run(tmp_path / "run") as run:
        config = AlignmentConfig(output_dir=str(tmp_path / "run"), **QUICK)
        folder = str(tmp_path / "tokenizer")
        context = Context(
            run, config, methods.online_dpo(), policy, reward="train", data=Mixture(()), tokenizer_folder=folder
        )
        assert reward.own_tokenizer(context).chat_template == tokenizer.chat_template


def test_trackio_may_be_private(policy: str, tmp_path: Path) -> None:
    """The setting is of its Space too, which would be public without it."""
    check = trainer(policy, tmp_path / "run", training={"hub_private_repo": True, "report_to": "none"})
    with pytest.raises(ConfigError, match="push_to_hub is not set"):
        check.train()
    from adaptpo.pipeline.arguments import refuse_unread

    args = SimpleNamespace(accelerator_config=SimpleNamespace(split_batches=False))
    refuse_unread({"hub_private_repo": True, "report_to": ["trackio"]}, args)


def phase(**facts: Any) -> dict[str, Any]:
    return {"done": True, "attempts": 1, "seconds": 2.0, "prompts": 10, "steps": 5} | facts


@pytest.mark.parametrize(
    ("phases", "samples", "steps"),
    [
        ({"warmup": phase(epochs=3.0, steps=15)}, 15.0, 7.5),
        ({"warmup": phase(attempts=2, seconds=0.1), "iterations/0/train": phase()}, 5.0, 2.5),
        ({"warmup": phase(attempts=2)}, 0.0, 0.0),
    ],
    ids=["epochs", "one interrupted", "all interrupted"],
)
def test_rates_count_epochs_and_whole_phases(
    phases: dict[str, Any], samples: float, steps: float, tmp_path: Path
) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"phases": phases}))
    metrics = outcome(tmp_path).metrics
    assert (metrics["train_samples_per_second"], metrics["train_steps_per_second"]) == (samples, steps)


def test_a_run_counts_its_epochs(policy: str, tmp_path: Path) -> None:
    trainer(policy, tmp_path / "run", training={"num_train_epochs": 3}).train()
    facts = json.loads((tmp_path / "run" / "state.json").read_text())["phases"]["iterations/0/train"]
    assert (facts["epochs"], facts["prompts"]) == (3.0, 4)


def test_runs_with_other_stages_are_compared_by_stage() -> None:
    """Without a warm-up, the first iteration lies where it lies in a run with one."""

    def run(values: dict[str, float]) -> Any:
        value: Callable[[float], Any] = lambda found: lambda metric: found  # noqa: E731
        return SimpleNamespace(stages=[SimpleNamespace(key=key, value=value(found)) for key, found in values.items()])

    runs = {
        "with": run({"initial": 0.0, "warmup": 1.0, "iteration-0": 2.0}),
        "without": run({"initial": 0.0, "iteration-0": 3.0}),
    }
    curves = stage_curves(runs, "reward/mean")
    assert [curves["with"][0].tolist(), curves["without"][0].tolist()] == [[0, 1, 2], [0, 2]]
    np.testing.assert_array_equal(curves["without"][1], [0.0, 3.0])


def test_bfloat16_rounds_small_steps_away() -> None:
    """Why such weights are doubted: a step of 5e-7 leaves a weight of 0.02 as it was, where float32 keeps it."""
    step = torch.tensor(5e-7)
    weight = torch.tensor(0.02)
    assert weight.bfloat16() - step.bfloat16() == weight.bfloat16() and weight - step != weight


@pytest.mark.parametrize(
    ("method", "doubt"),
    [
        ({"name": "kto", "objective": "dpo"}, "method 'kto' trains with the objective dpo in place of its own, kto"),
        ({"name": "kto", "objective": [{"name": "kto", "beta": 0.3}, "sft"]}, None),
        ({"name": "kto", "beta": 0.3}, None),
        ({"name": "metaapo", "objective": "simpo"}, None),
        ("pool_kto", None),
    ],
    ids=str,
)
def test_a_method_with_the_objective_of_another_is_doubted(method: Any, doubt: str | None) -> None:
    """`--method.name kto` keeps the objective of the recipe's section; any objective suits a method of DPO's pairs."""
    built = build_method(Recipe(model="m", data="d", output_dir="o", method=method))
    found = [each for each in built.doubts(Schedule((100, 100, 100), 1.0)) if "in place of its own" in each]
    assert len(found) == (doubt is not None) and all(each.startswith(str(doubt)) for each in found)


def test_an_adapter_at_a_whole_models_rate_is_doubted(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(policy, tmp_path / "run", peft=LORA, show_progress=True).train()
    assert "learning_rate is 5e-07, which is for training all weights" in "".join(capsys.readouterr())
    trainer(policy, tmp_path / "fast", peft=LORA, show_progress=True, training={"learning_rate": 1e-4}).train()
    assert "for training all weights" not in "".join(capsys.readouterr())
