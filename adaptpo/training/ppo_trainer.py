"""PPO's training on the rollouts of one iteration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from adaptpo.choices.method import Method
from adaptpo.choices.policy_update import PPO
from adaptpo.distributed.ranks import ALONE, Ranks
from adaptpo.models.collate import Batch
from adaptpo.models.packing import PADDED, RowPacking, row_tokens
from adaptpo.training.actor_critic import ActorCritic
from adaptpo.training.ppo import ppo_loss
from adaptpo.training.prompt_group_trainer import BatchLoss, GroupTrainer, Log
from adaptpo.training.rollouts import RolloutCollator, RolloutGroup, batch_tokens

FASTER_CRITIC = 10


class PPOTrainer(GroupTrainer):
    """Trains policy and critic. The divisor of the loss is the number of response tokens of the optimizer step."""

    def __init__(
        self,
        model: ActorCritic,
        args: TrainingArguments,
        groups: Sequence[RolloutGroup],
        tokenizer: PreTrainedTokenizerBase,
        method: Method,
        settings: PPO,
        log: Log,
        callbacks: Sequence[TrainerCallback] = (),
        rows: RowPacking = PADDED,
        ranks: Ranks = ALONE,
    ) -> None:
        self.actor_critic, self.settings, self.rows = model, settings, rows
        collate = RolloutCollator(tokenizer.pad_token_id, rows).batches
        costs = np.array([row_tokens([group], rows) for group in groups], np.int64)
        super().__init__(model, args, groups, collate, tokenizer, method, log, callbacks, ranks, costs=costs)

    def count(self, batch: Batch) -> int:
        return int(batch["response_mask"].sum())

    def batch_loss(self, model: nn.Module, batch: Batch, divisor: int) -> BatchLoss:
        logps, values = model(batch, self.rows.chunked_head)
        loss, means = ppo_loss(logps, values, batch_tokens(batch), self.settings)
        metrics = {name: (mean, self.count(batch)) for name, mean in means.items()}
        return BatchLoss(loss / divisor, bool(torch.isfinite(loss)), metrics, batch["prompt_id"])

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The recipe's optimizer; the critic has its own learning rate."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.actor_critic))
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            groups = [
                {"params": parameters, "lr": rate, "weight_decay": self.args.weight_decay if decays else 0.0}
                for part, rate in (("policy", self.args.learning_rate), ("critic", self.critic_learning_rate))
                for decays in (True, False)
                if (parameters := self.trained(part, decayed, decays))
            ]
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    @property
    def critic_learning_rate(self) -> float:
        own = self.settings.critic_learning_rate
        return FASTER_CRITIC * self.args.learning_rate if own is None else own

    def trained(self, part: str, decayed: set[str], decays: bool) -> list[nn.Parameter]:
        return [
            parameter
            for name, parameter in self.actor_critic.named_parameters()
            if parameter.requires_grad and name.startswith(f"{part}.") and (name in decayed) == decays
        ]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.actor_critic.save_state(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.actor_critic.load_state(Path(resume_from_checkpoint))
