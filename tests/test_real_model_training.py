"""The real model against TRL's trainers: losses, weights after three steps, and a reward model's scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from adaptpo import AlignmentConfig, AlignmentTrainer
from adaptpo.annotation.reward_model import RewardModelAnnotator, load_reward_model
from adaptpo.choices.method import Method
from adaptpo.choices.objectives import DPO, IPO, Hinge, Objective
from adaptpo.choices.pairing import Offline
from adaptpo.choices.selection import SelectNone
from adaptpo.choices.weighting import Uniform
from adaptpo.distributed.quiet import turn_off_telemetry
from adaptpo.models.collate import GroupCollator
from adaptpo.training.step import preference_step
from adaptpo.types import Prompt, Response
from tests.groups import tokenized_groups
from tests.real_model import load_real_model, needs_real_model, real_model, real_tokenizer

pytestmark = [needs_real_model, pytest.mark.engines]
TEXTS = [
    ("Q: What is the capital of France?\nA:", " It is Paris.", " A large green dog, I think."),
    ("Q: How many legs has a spider?\nA:", " Eight.", " Spiders are a kind of fish."),
    ("Q: Name a fruit.\nA:", " An apple is a fruit.", " No."),
    ("Q: Is water wet?\nA:", " Yes, it is.", " Wednesday."),
]
ROWS = [dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)) for texts in TEXTS]
"""Without a template, which writes a line break behind a turn that TRL alone trains on."""
ON_A_CPU = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": None}


def trl_arguments(kind: type, folder: Path, **settings: Any) -> Any:
    turn_off_telemetry()
    args = {"output_dir": str(folder), "per_device_train_batch_size": 4, "save_strategy": "no"}
    return kind(**args | ON_A_CPU | settings, dataloader_pin_memory=False)


def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    """A policy that differs from its reference by half a percent of its weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1 + 0.005 * torch.randn(parameter.shape, generator=generator)
    return model


OBJECTIVES: dict[str, Objective] = {"sigmoid": DPO(beta=0.3), "ipo": IPO(beta=0.3), "hinge": Hinge(beta=0.3)}
"""By TRL's loss type."""


def test_losses_equal_trl(tmp_path: Path) -> None:
    tokenizer, reference, policy = real_tokenizer(), load_real_model(), perturbed(load_real_model())
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=trl_arguments(DPOConfig, tmp_path, beta=0.3),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    theirs = trainer.data_collator([trainer.train_dataset[row] for row in range(len(ROWS))])
    ours = GroupCollator(0)(tokenized_groups(tokenizer, ROWS, reference))
    for name, objective in OBJECTIVES.items():
        trainer.loss_types = [name]
        method = Method(SelectNone(), Offline(), objective, Uniform())
        with torch.no_grad():
            expected = trainer.compute_loss(policy, theirs).item()
            found = preference_step(policy, ours, method, len(ROWS)).loss.item()
        assert found == pytest.approx(expected, rel=1e-5), name


class Recording(DPOTrainer):
    """Keeps each step's loss, which its log rounds."""

    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        loss = super().compute_loss(*arguments, **named)
        self.losses = [*getattr(self, "losses", []), loss.item()]
        return loss


@pytest.mark.parametrize("name", ["sigmoid"])
def test_weights_after_three_steps_equal_trl(name: str, tmp_path: Path) -> None:
    """Three whole runs of one batch a step; SGD, because Adam divides by gradients that are rounding alone."""
    steps = {"learning_rate": 0.01, "num_train_epochs": 3, "lr_scheduler_type": "constant", "optim": "sgd"}
    trainer = Recording(
        model=load_real_model(),
        args=trl_arguments(DPOConfig, tmp_path / "trl", beta=0.3, loss_type=[name], **steps),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=real_tokenizer(),
    )
    start = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    training = steps | {"per_device_train_batch_size": 4, "use_cpu": True}
    args = {"num_iterations": 1, "warmup_epochs": 0, "training": training, "show_progress": False}
    AlignmentTrainer(
        model=real_model(),
        args=AlignmentConfig(output_dir=str(tmp_path / "run"), **args),
        method=Method(SelectNone(), Offline(), OBJECTIVES[name], Uniform()),
        train_dataset=ROWS,
    ).train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(trainer.losses, rel=1e-5)
    theirs, ours = trainer.model.state_dict(), load_file(tmp_path / "run" / "final" / "model.safetensors")
    moved = max((theirs[key] - start[key]).abs().max().item() for key in ours)
    apart = max((theirs[key] - ours[key]).abs().max().item() for key in ours)
    assert moved > 1e-3 and apart < 1e-5, (moved, apart)


def test_reward_model_of_trl_is_scored_alike(tmp_path: Path) -> None:
    """Trained for two steps by TRL, saved, and read by adaptpo."""
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in TEXTS
    ]
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(real_model(), num_labels=1, dtype=torch.float32)
    trainer = RewardTrainer(
        model=model,
        args=trl_arguments(RewardConfig, tmp_path / "training", max_steps=2, learning_rate=1e-4),
        train_dataset=Dataset.from_list(rows),
        processing_class=real_tokenizer(),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "rm"))
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(rows))])
    with torch.no_grad():
        expected = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    annotator = RewardModelAnnotator(*load_reward_model(str(tmp_path / "rm"), {}))
    prompts = [Prompt(number, row["prompt"], []) for number, row in enumerate(rows)]
    asked = [
        (p, Response(row[side], [])) for side in ("chosen", "rejected") for p, row in zip(prompts, rows, strict=True)
    ]
    assert annotator.rewards(asked) == pytest.approx(expected.tolist(), abs=1e-4)
    assert expected.std() > 0.1
