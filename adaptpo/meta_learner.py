"""MetaAPO's meta-learner: a two-layer network from a pair's preference score to its weight (section 4.3)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from adaptpo.learner import OFFLINE, ONLINE, Gather, Learner, PairBatch
from adaptpo.objectives import score

HIDDEN = 100


def new_network(seed: int, constant_fill: bool = False) -> nn.Sequential:
    """Linear(1, 100) - Tanh - Linear(100, 1) - Sigmoid, rising from about 0 at very negative scores to 0.5 at 0.

    Weights are uniform on (0, 0.2), hence of mean 0.1, biases 0. `constant_fill` sets every weight to 0.1, as the
    authors' released code does: then all hidden units stay equal for ever and act as one.
    """
    network = nn.Sequential(nn.Linear(1, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1), nn.Sigmoid())
    generator = torch.Generator().manual_seed(seed)
    for layer in (network[0], network[2]):
        nn.init.zeros_(layer.bias)
        if constant_fill:
            nn.init.constant_(layer.weight, 0.1)
        else:
            nn.init.uniform_(layer.weight, 0.0, 0.2, generator=generator)
    return network


def paired_margins(batch: PairBatch) -> Tensor:
    """[m, 2]: margins of the offline and of the online pair of each prompt that has both."""
    rows = []
    for group in batch.group.unique():
        members = batch.group == group
        offline, online = members & (batch.source == OFFLINE), members & (batch.source == ONLINE)
        if offline.any() and online.any():
            rows.append(torch.stack([batch.margin[offline].mean(), batch.margin[online].mean()]))
    return torch.stack(rows) if rows else batch.margin.new_zeros(0, 2)


class MetaLearner(Learner):
    """h of MetaAPO: `w = h(l_off)`, learned by one Adam step on Eq. 6 every `update_interval` optimizer steps.

    The buffer holds the scores of the interval as the policy's own forward passes saw them (the policy is frozen while
    h learns, Algorithm 1 lines 18-21), over all ranks and accumulation steps; it is emptied by every update and at the
    start of every iteration. `score_scale` multiplies the margin before `log sigmoid`: 1 is Eq. 4, `1 / beta` is the
    scale of the authors' released code.
    """

    def __init__(
        self,
        learning_rate: float = 5e-3,
        update_interval: int = 8,
        score_scale: float = 1.0,
        constant_fill: bool = False,
    ) -> None:
        self.learning_rate = learning_rate
        self.update_interval = update_interval
        self.score_scale = score_scale
        self.constant_fill = constant_fill
        self.reset(seed=0)

    def __repr__(self) -> str:
        return f"MetaLearner(learning_rate={self.learning_rate}, update_interval={self.update_interval})"

    def reset(self, seed: int) -> None:
        self.network = new_network(seed, self.constant_fill)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)
        self.updates, self.last_loss = 0, float("nan")
        self.start_iteration()

    def start_iteration(self) -> None:
        self.steps, self.buffer = 0, torch.zeros(0, 2)

    def scores(self, margins: Tensor) -> Tensor:
        return score(self.score_scale * margins.detach().float().cpu())

    def weight(self, margins: Tensor) -> Tensor:
        """`h(l_off)` in (0, 1) for margins [n] of offline pairs: the trust in the offline pair. No gradient."""
        with torch.no_grad():
            return self.network(self.scores(margins)[:, None])[:, 0].to(margins.device)

    def loss(self, scores: Tensor) -> Tensor:
        """Eq. 6 on scores [m, 2] of (offline, online) pairs: `-mean[h(l_off) * l_off + (1 - h(l_off)) * l_on]`."""
        offline, online = scores.unbind(dim=1)
        weight = self.network(offline[:, None])[:, 0]
        return -(weight * offline + (1 - weight) * online).mean()

    def observe(self, batch: PairBatch) -> None:
        self.buffer = torch.cat([self.buffer, self.scores(paired_margins(batch))])

    def update(self, gather: Gather) -> None:
        self.steps += 1
        if self.steps % self.update_interval:
            return
        buffer = gather(self.buffer)
        self.buffer = torch.zeros(0, 2)
        if len(buffer):
            self._learn(buffer)

    def _learn(self, buffer: Tensor) -> None:
        self.optimizer.zero_grad()
        loss = self.loss(buffer)
        loss.backward()
        self.optimizer.step()
        self.updates, self.last_loss = self.updates + 1, loss.item()

    def state_dict(self) -> dict[str, Any]:
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "last_loss": self.last_loss,
            "steps": self.steps,
            "buffer": self.buffer,
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.last_loss = state["updates"], state["last_loss"]
        self.steps, self.buffer = state["steps"], state["buffer"]

    def metrics(self) -> dict[str, float]:
        counts = {"meta/updates": float(self.updates), "meta/buffer": float(len(self.buffer))}
        return counts | ({"meta/loss": self.last_loss} if self.updates else {})

    def snapshot(self) -> dict[str, Any]:
        """The learner's curve over margins from -40 to 10 (Figure 3, middle)."""
        margins = torch.linspace(-40, 10, 501) / max(self.score_scale, 1.0)
        return {"curve": {"score": self.scores(margins).tolist(), "weight": self.weight(margins).tolist()}}
