"""The policy and the critic that PPO trains together.

The critic has its own layers, as in Stiennon et al. (2020): value gradients through the policy's layers would change
its responses. It starts as a copy of the policy that the first iteration starts from, and carries over from
iteration to iteration. In training it takes the memory of a second policy; with an adapter, that of a second adapter
and the frozen layers below it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptpo.models.collate import Batch
from adaptpo.models.logps import model_arguments, token_logps
from adaptpo.models.shared_prompt.attention import base_model

CRITIC = "critic"
VALUE_HEAD = "value_head.pt"
STATE = "actor_critic.pt"


class Critic(nn.Module):
    """Predicts the expected return before each response token: a linear head, initially 0, on the last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        inner: Any = base_model(model)
        self.head = nn.Linear(inner.config.get_text_config().hidden_size, 1, device=inner.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Tensor:
        """V(prompt, previous tokens), [n, longest] float32, 0 after the end of a response."""
        arguments = {name: value for name, value in model_arguments(self.model, batch).items() if name != LOGITS}
        hidden = base_model(self.model).base_model(**arguments).last_hidden_state
        states = hidden[:, batch["columns"]][batch["target_mask"]]
        with torch.autocast(states.device.type, enabled=False):
            values = self.head(states.float())[:, 0]
        mask = batch["response_mask"]
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        torch.save(self.head.state_dict(), folder / VALUE_HEAD)

    def load_head(self, folder: Path) -> None:
        self.head.load_state_dict(torch.load(folder / VALUE_HEAD, weights_only=True, map_location="cpu"))


LOGITS = "logits_to_keep"


class ActorCritic(nn.Module):
    def __init__(self, policy: nn.Module, critic: Critic) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    def forward(self, batch: Batch, chunked_head: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probs of the response tokens and the values before them, both [n, longest]."""
        return token_logps(self.policy, batch, chunked_head), self.critic(batch)

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        for model in (self.policy, self.critic.model):
            base_model(model).gradient_checkpointing_enable(**settings)

    def trained_state(self) -> dict[str, Tensor]:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in self.state_dict().items() if name in trained}

    def save_state(self, folder: Path) -> None:
        """Saves what training changes, for a checkpoint inside a phase."""
        torch.save(self.trained_state(), folder / STATE)

    def load_state(self, folder: Path) -> None:
        device = next(self.parameters()).device
        self.load_state_dict(torch.load(folder / STATE, weights_only=True, map_location=device), strict=False)

    def save(self, folder: Path) -> None:
        """Saves the policy as an ordinary model folder, and the critic in a folder inside it."""
        self.policy.save_pretrained(folder)
        self.critic.save(folder / CRITIC)
