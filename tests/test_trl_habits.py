"""What TRL's users expect of a trainer object: its results, its state, its methods and its arguments."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainerCallback, TrainingArguments
from trl import DPOConfig, DPOTrainer

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.errors import AdaptpoError, ConfigError, MachineError, RunError
from adaptpo.pipeline.arguments import optimizer_of
from adaptpo.run.files import JsonLines, read_rows
from adaptpo.training.own_optimizer import OwnOptimizer
from tests.runs import weights
from tests.tiny import byte_tokenizer, preference_rows, save_policy, tiny_model, vowel_reward

QUICK: dict[str, Any] = {"num_iterations": 2, "max_prompt_length": 64, "show_progress": False}
QUICK |= {"generation": {"max_new_tokens": 10}}
TRAINING = {"learning_rate": 1e-3, "per_device_train_batch_size": 2}
ROWS = preference_rows(8)
HELD_OUT = preference_rows(3, seed=5)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_policy(tmp_path_factory.mktemp("policy"))


def trainer(policy: Any, out: Path, settings: dict[str, Any] | None = None, **changes: Any) -> AlignmentTrainer:
    given = {"training": TRAINING, **QUICK, **(settings or {}), "output_dir": str(out)}
    usual = {"model": policy, "args": AlignmentConfig(**given), "method": "dpo", "train_dataset": ROWS}
    return AlignmentTrainer(**(usual | changes))


class Seen(TrainerCallback):
    """Collects the steps and the losses that it is told of."""

    def __init__(self) -> None:
        self.begun, self.logs = 0, list[dict[str, float]]()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.begun += 1

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.logs.append(dict(logs) | {"step": state.global_step})


class Trained:
    def __init__(self, policy: str, out: Path) -> None:
        self.seen = Seen()
        self.trainer = trainer(policy, out, callbacks=[self.seen], eval_dataset=HELD_OUT)
        self.before = self.trainer.evaluate()
        self.output = self.trainer.train()


@pytest.fixture(scope="module")
def trained(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(policy, tmp_path_factory.mktemp("trained") / "run")


# Results


def test_train_returns_what_transformers_returns(trained: Trained) -> None:
    step, loss, metrics = trained.output
    lines = JsonLines(trained.output.folder.parent / "metrics.jsonl").read()
    losses = [line["loss"] for line in lines if line["phase"].endswith("/train")]
    assert (step, trained.output.global_step) == (4, 4)
    assert loss == metrics["train_loss"] == pytest.approx(sum(losses) / 4)
    assert metrics["train_samples_per_second"] > metrics["train_steps_per_second"] > 0


def test_the_output_is_the_path_of_the_model(trained: Trained) -> None:
    folder = Path(trained.trainer.args.output_dir) / "final"
    assert Path(trained.output) == trained.output.folder == folder and str(trained.output) == str(folder)
    assert (trained.output / "config.json").exists() and trained.output.parent == folder.parent
    assert AutoModelForCausalLM.from_pretrained(trained.output)
    assert pickle.loads(pickle.dumps(trained.output)).folder == folder


def test_a_loss_is_weighted_by_its_steps(policy: str, tmp_path: Path) -> None:
    """Four steps, logged after the third: its loss is the mean of three."""
    training = TRAINING | {"logging_steps": 3, "per_device_train_batch_size": 1}
    output = trainer(policy, tmp_path / "run", {"num_iterations": 2, "training": training}).train()
    lines = [line for line in JsonLines(tmp_path / "run" / "metrics.jsonl").read() if "loss" in line]
    assert [line["step"] for line in lines] == [3, 3] and output.global_step == 8
    assert output.training_loss == pytest.approx((lines[0]["loss"] + lines[1]["loss"]) / 2)


def test_the_state_has_the_log_of_all_phases(trained: Trained) -> None:
    history = [line for line in trained.trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in history] == [1, 2, 3, 4] and trained.trainer.state.global_step == 4
    assert [line["iteration"] for line in history] == [0, 0, 1, 1]
    assert [line["epoch"] for line in history] == [0.5, 1.0, 0.5, 1.0]
    assert {"loss", "grad_norm", "learning_rate", "rewards/margins", "num_tokens"} <= history[0].keys()
    assert {"eval_loss", "eval_rewards/margins"} <= trained.trainer.state.log_history[-1].keys()


def test_model_and_tokenizer_of_the_trainer(trained: Trained) -> None:
    expected = load_file(trained.output / "model.safetensors")
    found = trained.trainer.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert trained.trainer.processing_class.eos_token == "<|end|>"


def test_save_model_copies_it(trained: Trained, tmp_path: Path) -> None:
    trained.trainer.save_model()
    trained.trainer.save_model(tmp_path / "there")
    names = {path.name for path in (tmp_path / "there").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names


def test_before_training(policy: str, tmp_path: Path) -> None:
    made = trainer(policy, tmp_path / "run", {"peft": {"r": 2}})
    assert made.state.log_history == [] and made.state.global_step == 0
    assert made.model.get_nb_trainable_parameters()[0] > 0
    for use in (made.save_model, made.push_to_hub):
        with pytest.raises(RunError, match=r"call train\(\) first"):
            use()
    assert not (tmp_path / "run").exists()


# Evaluation


def test_evaluate_before_and_after(trained: Trained) -> None:
    assert trained.before["eval_loss"] == pytest.approx(math.log(2), abs=1e-4)
    after = trained.trainer.evaluate()
    lines = JsonLines(trained.output.folder.parent / "metrics.jsonl").read()
    (logged,) = [line for line in lines if line["phase"] == "evaluate/iteration-1"]
    assert after == {name: logged[name] for name in after} and after["eval_loss"] != trained.before["eval_loss"]


def test_evaluate_on_other_data(trained: Trained) -> None:
    """The same rows give the same numbers, apart from the run's own evaluations."""
    same = trained.trainer.evaluate(datasets.Dataset.from_list(HELD_OUT))
    assert same == pytest.approx(trained.trainer.evaluate())
    other = trained.trainer.evaluate(preference_rows(3, seed=6))
    assert other.keys() == same.keys() and other["eval_loss"] != same["eval_loss"]
    files = sorted(path.stem for path in trained.output.folder.parent.glob("evaluation/*.parquet"))
    assert files == []  # Without a reward, nothing is sampled.


def test_evaluate_on_more_prompts_of_the_same_data(policy: str, tmp_path: Path) -> None:
    held_out = preference_rows(6, seed=5)
    for most in (2, 6):
        made = trainer(policy, tmp_path / "run", reward_funcs=vowel_reward, max_eval_prompts=most)
        made.evaluate(held_out)
    files = (tmp_path / "run/evaluation").rglob("initial.parquet")
    assert sorted(pq.read_table(file).num_rows for file in files) == [2, 6]


def test_a_run_keeps_its_number_of_held_out_prompts(policy: str, tmp_path: Path) -> None:
    held_out = preference_rows(6, seed=5)
    trainer(policy, tmp_path / "run", eval_dataset=held_out, max_eval_prompts=2).evaluate()
    with pytest.raises(ConfigError, match="max_eval_prompts is 0; give a number of prompts, or leave eval_dataset out"):
        trainer(policy, tmp_path / "other", eval_dataset=held_out, max_eval_prompts=0)
    with pytest.raises(RunError, match="max_eval_prompts"):
        trainer(policy, tmp_path / "run", eval_dataset=held_out, max_eval_prompts=6).evaluate()


@pytest.mark.parametrize("changed", ["train_dataset", "eval_dataset"])
def test_a_run_keeps_how_its_data_are_read(policy: str, tmp_path: Path, changed: str) -> None:
    data = {"train_dataset": {"path": ROWS}, "eval_dataset": {"path": HELD_OUT}}
    trainer(policy, tmp_path / "run", **data).evaluate()
    data[changed] = data[changed] | {"text_format": "messages"}
    with pytest.raises(RunError, match=r"data\.text_format"):
        trainer(policy, tmp_path / "run", **data).evaluate()


def test_evaluate_needs_data(policy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="evaluate needs held-out data"):
        trainer(policy, tmp_path / "run").evaluate()


# Metrics


def test_logged_keys_are_trls(policy: str, tmp_path: Path) -> None:
    """One step on all rows: TRL's numbers under TRL's names, but for those that need all logits."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), byte_tokenizer()
    args = DPOConfig(output_dir=str(tmp_path / "trl"), per_device_train_batch_size=8, num_train_epochs=2, **ONE_STEP)
    theirs = DPOTrainer(model, args=args, train_dataset=datasets.Dataset.from_list(ROWS), processing_class=tokenizer)
    theirs.train()
    training = {"per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-4}
    ours = trainer(policy, tmp_path / "run", {"num_iterations": 1, "training": training})
    ours.train()
    expected = [line for line in theirs.state.log_history if "loss" in line]
    found = [line for line in ours.state.log_history if "loss" in line]
    missing = {"entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"}
    for own, line in zip(found, expected, strict=True):
        assert line.keys() - own.keys() == missing
        same = line.keys() & own.keys() - {"learning_rate"}
        assert {name: own[name] for name in same} == pytest.approx({name: line[name] for name in same}, abs=2e-4)
        assert own["num_tokens"] == line["num_tokens"]


ONE_STEP: dict[str, Any] = {"learning_rate": 1e-4, "logging_steps": 1, "report_to": "none", "use_cpu": True}
ONE_STEP |= {"bf16": False, "gradient_checkpointing": False, "lr_scheduler_type": "linear", "save_strategy": "no"}


# Callbacks


def test_callbacks_see_every_training_phase(trained: Trained) -> None:
    assert trained.seen.begun == 2
    assert [line["step"] for line in trained.seen.logs] == [1, 2, 1, 2]
    assert "rewards/margins" in trained.seen.logs[0]


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = True


class Evaluate(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_evaluate = True


def test_a_callback_can_end_a_phase(policy: str, tmp_path: Path) -> None:
    made = trainer(policy, tmp_path / "run")
    made.add_callback(Stop)
    assert made.train().global_step == 2


class Fill(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_a_full_accelerator_names_the_remedy(policy: str, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"phase iterations/0/train: .* max_tokens_per_batch .*Tried to allocate 2"):
        trainer(policy, tmp_path / "run", callbacks=[Fill()]).train()


def test_a_callback_cannot_ask_for_an_evaluation(policy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a run evaluates after every iteration"):
        trainer(policy, tmp_path / "run", callbacks=[Evaluate()]).train()


# Optimizers


def test_an_optimizer_gives_its_class_and_settings(policy: str, tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.1)
    one = {"num_iterations": 1, "training": {"per_device_train_batch_size": 2}}
    trainer(policy, tmp_path / "object", one, optimizers=(optimizer, None)).train()
    named = {"optim": "sgd", "learning_rate": 0.5, "optim_args": "momentum=0.1", "per_device_train_batch_size": 2}
    trainer(policy, tmp_path / "named", {"num_iterations": 1, "training": named}).train()
    last = "iterations/0/checkpoint/model.safetensors"
    one_weights, other_weights = load_file(tmp_path / "object" / last), load_file(tmp_path / "named" / last)
    assert all(torch.equal(one_weights[name], other_weights[name]) for name in one_weights)
    assert "optimizer: torch.optim.sgd.SGD(" in (tmp_path / "object" / "config.yaml").read_text()


class Scaled(torch.optim.AdamW):
    def __init__(self, params: Any, scale: float = 1.0, **others: Any) -> None:
        super().__init__(params, **others)
        self.scale = scale


class Renamed(torch.optim.AdamW):
    def __init__(self, params: Any, rate: float = 1e-3) -> None:
        super().__init__(params, lr=rate)


class Hidden(torch.optim.SGD):
    def __init__(self, params: Any, **others: Any) -> None:
        super().__init__(params, lr=others.get("speed", 1e-3))


def over_one(kind: Any, **settings: Any) -> torch.optim.Optimizer:
    return kind([torch.nn.Parameter(torch.zeros(1))], **settings)


def test_an_optimizer_is_made_again_with_all_of_its_arguments() -> None:
    own = OwnOptimizer.like(over_one(Scaled, scale=7.0, lr=0.5, weight_decay=0.3))
    again = own.over([torch.nn.Parameter(torch.zeros(2))])
    assert (again.scale, again.defaults["lr"], again.defaults["weight_decay"]) == (7.0, 0.5, 0.3)
    assert "scale=7.0" in own.described


class Averaged(torch.optim.SGD):
    """As a schedule-free optimizer: the weights to use are others than those that it trains."""

    def train(self) -> None:
        for group in self.param_groups:
            group["average"] = False

    def eval(self) -> None:
        for weight in self.param_groups[0]["params"]:
            weight.data.fill_(0.5)


def test_a_schedule_free_optimizer_leaves_its_average(policy: str, tmp_path: Path) -> None:
    given = (over_one(Averaged, lr=0.1), None)
    one = {"num_iterations": 1, "training": {"per_device_train_batch_size": 2}}
    trainer(policy, tmp_path / "run", one, optimizers=given).train()
    found = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert all((weight == 0.5).all() for weight in found.values())


@pytest.mark.parametrize("name", ["galore_adamw", "apollo_adamw_layerwise", "lomo", "adalomo"])
def test_optimizers_that_act_within_the_backward_pass_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"training\.optim is {name}, which a run cannot use: .*adamw_torch"):
        optimizer_of(TrainingArguments(output_dir=str(tmp_path), optim=name, use_cpu=True))


@pytest.mark.parametrize("optimizer", [over_one(Renamed, rate=0.5), over_one(Hidden, speed=0.5)])
def test_an_optimizer_that_hides_its_arguments_is_refused(optimizer: torch.optim.Optimizer) -> None:
    with pytest.raises(ConfigError, match=r"does not say .*in `defaults` or as attributes"):
        OwnOptimizer.like(optimizer)


def two_groups() -> torch.optim.Optimizer:
    first, second = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    return torch.optim.AdamW([{"params": [first], "lr": 1e-3}, {"params": [second]}])


# Reference model


def references(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "reference").glob("*.parquet")) for row in read_rows(path)]


def test_a_reference_model_of_its_own(policy: str, tmp_path: Path) -> None:
    """Its stored log-probs are those of a run that starts from it; the policy's training begins with a margin."""
    other = save_policy(tmp_path / "other", seed=3)
    one = {"num_iterations": 1}
    given = AutoModelForCausalLM.from_pretrained(other)
    trainer(policy, tmp_path / "run", one, ref_model=given, processing_class=byte_tokenizer()).train()
    trainer(other, tmp_path / "from other", one).train()
    assert references(tmp_path / "run") == references(tmp_path / "from other") != []
    first = next(line for line in JsonLines(tmp_path / "run" / "metrics.jsonl").records() if "loss" in line)
    assert abs(first["rewards/margins"]) > 1e-4


def test_the_start_as_reference_model_changes_nothing(policy: str, tmp_path: Path) -> None:
    copy = save_policy(tmp_path / "copy")
    trainer(policy, tmp_path / "one", ref_model=copy).train()
    trainer(policy, tmp_path / "two").train()
    left, right = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(left[name], right[name]) for name in right)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"method": "simpo"}, {}, "compares with no reference; leave ref_model out"),
        ({}, {"reference": "previous"}, "set reference to initial"),
        ({"method": "grpo", "reward_funcs": vowel_reward}, {"peft": {"r": 2}}, "or train without peft"),
        ({"ref_model": "other tokenizer"}, {}, "has another tokenizer than the policy"),
    ],
)
def test_a_reference_that_is_impossible(
    changes: dict[str, Any], settings: dict[str, Any], message: str, policy: str, tmp_path: Path
) -> None:
    larger = byte_tokenizer()
    larger.add_tokens(["<more>"])
    tiny_model(larger).save_pretrained(tmp_path / "other tokenizer")
    larger.save_pretrained(tmp_path / "other tokenizer")
    given = changes | ({"ref_model": str(tmp_path / changes["ref_model"])} if "ref_model" in changes else {})
    with pytest.raises(AdaptpoError) as caught:
        trainer(policy, tmp_path / "run", settings, **({"ref_model": policy} | given)).train()
    assert message in str(caught.value)


# Misuses, refused at construction


def in_memory() -> Any:
    return tiny_model(byte_tokenizer())


MODEL = in_memory()
MISUSES: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model is missing"),
    ({"model": 3}, "model is of type int; give a hub id"),
    ({"model": torch.nn.Linear(1, 1)}, "model is of type Linear"),
    ({"model": type(MODEL)}, "model is of type"),
    ({"args": None}, "args is of type NoneType; give AlignmentConfig(output_dir=..."),
    ({"args": DPOConfig(output_dir="x", use_cpu=True, bf16=False)}, "args is of type DPOConfig"),
    ({"method": None}, "method is missing; give for instance adaptpo.methods.dpo()"),
    ({"method": ["dpo"]}, "method is of type list"),
    ({"train_dataset": None}, "train_dataset is missing"),
    ({"train_dataset": np.zeros((2, 2))}, "element 0 is of type list"),
    ({"train_dataset": b"rows"}, "cannot be of type bytes"),
    ({"eval_dataset": datasets.DatasetDict(test=datasets.Dataset.from_list(HELD_OUT))}, "one of its splits ('test')"),
    ({"processing_class": "gpt2"}, "processing_class is of type str, which is no tokenizer"),
    ({"processing_class": type("Processor", (), {"tokenizer": 1})()}, "give processor.tokenizer"),
    ({"reward_processing_class": "gpt2"}, "reward_processing_class is of type str"),
    ({"reward_funcs": 3}, "'reward' is a int"),
    ({"reward_funcs": []}, "reward is an empty list"),
    ({"reward_funcs": {"judg": "gpt"}}, "did you mean 'judge'"),
    ({"reward_funcs": [MODEL, vowel_reward]}, "save the models in memory first"),
    ({"ref_model": 3}, "ref_model is of type int"),
    ({"model": MODEL, "ref_model": MODEL, "processing_class": byte_tokenizer()}, "ref_model is the model itself"),
    ({"peft_config": LoraConfig}, "peft_config is of type type"),
    ({"peft_config": {"rank": 3}}, "unknown key 'peft.rank'"),
    ({"callbacks": Seen()}, "callbacks is of type Seen; give a list"),
    ({"callbacks": [print]}, "callbacks holds a builtin_function_or_method"),
    ({"callbacks": [EarlyStoppingCallback()]}, "EarlyStoppingCallback needs evaluations within training"),
    ({"optimizers": "adamw"}, "give (optimizer, None), or set training.optim"),
    ({"optimizers": (3, None)}, "optimizers holds a int"),
    ({"optimizers": (two_groups(), None)}, "parameter groups with settings of their own"),
    ({"optimizers": (torch.optim.SGD(MODEL.parameters(), lr=1), object())}, "training.lr_scheduler_type"),
    ({"optimizers": (torch.optim.SGD(MODEL.parameters(), lr=1), None)}, "leave out training.learning_rate"),
    ({"compute_metrics": print}, "no argument 'compute_metrics': leave it out; eval_dataset gives eval_loss"),
    ({"data_collator": print}, "no argument 'data_collator'"),
    ({"quantization_config": 1}, "model_init_kwargs={'quantization_config'"),
    ({"tokenizer": 1}, "no argument 'tokenizer': give processing_class"),
    ({"reward_processing_classes": [1]}, "give reward_processing_class"),
    ({"judge": 1}, "give reward_funcs={'judge'"),
    ({"beta": 0.1}, "set method.objective.beta"),
    ({"learning_rate": 1}, "set training.learning_rate"),
    ({"trian_dataset": ROWS}, "did you mean 'train_dataset'"),
]


@pytest.mark.parametrize(("changes", "message"), MISUSES, ids=[f"{n}-{[*c][-1]}" for n, (c, _) in enumerate(MISUSES)])
def test_misuse(changes: dict[str, Any], message: str, policy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer(policy, tmp_path / "run", **changes)
    assert message in str(caught.value) and len(str(caught.value)) < 700
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": TrainingArguments(output_dir="x", use_cpu=True)}, "takes a mapping of names to values"),
        ({"training": {"optim": torch.optim.AdamW}}, "'training.optim' is of type type, which a run cannot store"),
        ({"model_init_kwargs": {"device_map": print}}, "'model_init_kwargs.device_map' is of type builtin"),
        ({"chat_template_kwargs": {"tools": [print]}}, "'chat_template_kwargs.tools.0' is of type builtin"),
        ({"peft": LoraConfig(r=2)}, "takes a mapping of names to values"),
        ({"training": ["learning_rate"]}, "takes a mapping of names to values"),
    ],
)
def test_misused_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AlignmentConfig(output_dir="x", **settings)
    assert message in str(caught.value) and len(str(caught.value)) < 400


def test_objects_are_stored_as_a_recipe_has_them() -> None:
    training = {"lr_scheduler_type": TrainingArguments(output_dir="x", use_cpu=True).lr_scheduler_type}
    training |= {"learning_rate": np.float64(1e-3), "save_steps": np.int64(3)}
    args = AlignmentConfig(output_dir="x", training=training, model_init_kwargs={"dtype": torch.bfloat16})
    assert args.training == {"lr_scheduler_type": "linear", "learning_rate": 1e-3, "save_steps": 3}
    assert type(args.training["save_steps"]) is int and args.model_init_kwargs == {"dtype": "bfloat16"}


def test_methods_of_trl_that_are_not_here_say_what_is(policy: str, tmp_path: Path) -> None:
    made = trainer(policy, tmp_path / "run")
    with pytest.raises(AttributeError, match=r"no attribute 'log_metrics': print them; metrics\.jsonl"):
        made.log_metrics("train", {})
    assert not hasattr(made, "anything")


def test_train_does_not_take_a_checkpoint(policy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a run resumes by itself"):
        trainer(policy, tmp_path / "run").train(resume_from_checkpoint="checkpoint-500")
