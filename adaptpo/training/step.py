"""One training step, which knows no method by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptpo.choices.method import Method
from adaptpo.choices.objectives import Objective
from adaptpo.models.collate import Batch, pair_batch
from adaptpo.models.logps import pair_logps
from adaptpo.training.whole_vocabulary import VocabularyProbe
from adaptpo.types import ONLINE, PairBatch, PairLogps


@dataclass(frozen=True)
class Step:
    """The result of a step. `loss`: scalar with graph; the rest is on the host. `is_finite`: whether the loss is.
    `weights` [n]: one per pair of `pairs`. `metrics`: means, each with the number of values that it is of."""

    loss: Tensor
    is_finite: bool
    pairs: PairBatch
    weights: Tensor
    metrics: dict[str, tuple[float, int]]


def preference_step(
    model: nn.Module,
    batch: Batch,
    method: Method,
    num_prompts: int | Tensor,
    chunked_head: bool = False,
    progress: float = 0.0,
    probe: VocabularyProbe | None = None,
) -> Step:
    """The weighted loss of a micro-batch of whole groups: `sum_i weight_i * loss_i / num_prompts` (Eq. 5).

    `num_prompts` is the number of prompts of the whole optimizer step, over all micro-batches (and ranks).
    `progress` is the share of the run's training that is done, in [0, 1]. `probe` measures what the weighting needs.
    """
    objective = method.objective.at(progress)
    measured: dict[str, Tensor] = {}
    if probe is None:
        logps = pair_logps(model, batch, chunked_head)
    else:
        logps, measured = probe.logps(model, batch, chunked_head, objective)
    losses = objective.loss(logps)
    still, measured = on_host(logps, {"losses": losses, **measured})
    found = measured.pop("losses")
    pairs = pair_batch(batch["pairs"], still, method.objective.margin(still), **measured)
    weights = method.weighting.weights(pairs).detach().cpu()
    metrics = step_metrics(method, still, pairs, weights)
    loss = (weights.to(losses.device) * losses).sum() / num_prompts
    return Step(loss, bool(torch.isfinite((weights * found).sum())), pairs, weights, metrics)


def lies_on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def on_host(logps: PairLogps, more: dict[str, Tensor]) -> tuple[PairLogps, dict[str, Tensor]]:
    """Copies without a graph on the CPU, in one transfer: each transfer waits until the device has computed."""
    fields = {name: value for name, value in vars(logps).items() if value is not None}
    taken = {name: value.detach() for name, value in (fields | more).items()}
    if not lies_on_host(logps.chosen):
        wide = torch.float32 if logps.chosen.device.type == "mps" else torch.float64
        row = torch.cat([value.flatten().to(wide) for value in taken.values()]).cpu()
        pieces = zip(taken.items(), row.split([value.numel() for value in taken.values()]), strict=True)
        taken = {name: piece.view(value.shape).to(value.dtype) for (name, value), piece in pieces}
    return PairLogps(**{name: taken[name] for name in fields}), {name: taken[name] for name in more}


@torch.no_grad()
def step_metrics(method: Method, logps: PairLogps, pairs: PairBatch, weights: Tensor) -> dict[str, tuple[float, int]]:
    """Metrics under TRL's names, as means over pairs; weights as means over the pairs of each source."""
    values = reward_values(method.objective, logps)
    online = pairs.source == ONLINE
    for name, members in (("weight/online", online), ("weight/offline", ~online)):
        if members.any():
            values[name] = weights[members]
    return {name: (value.float().mean().item(), len(value)) for name, value in values.items()}


def reward_values(objective: Objective, logps: PairLogps) -> dict[str, Tensor]:
    """Values under TRL's names, each of the pairs that have what it is about: an unpaired response has no margin."""
    chosen, rejected = objective.rewards(logps)
    has_chosen, has_rejected = logps.chosen_tokens > 0, logps.rejected_tokens > 0
    values = {
        "rewards/chosen": chosen[has_chosen],
        "rewards/rejected": rejected[has_rejected],
        "rewards/margins": (chosen - rejected)[has_chosen & has_rejected],
        "rewards/accuracies": (chosen > rejected).float()[has_chosen & has_rejected],
        "logps/chosen": logps.chosen[has_chosen],
        "logps/rejected": logps.rejected[has_rejected],
    }
    return {name: value for name, value in values.items() if len(value)}
