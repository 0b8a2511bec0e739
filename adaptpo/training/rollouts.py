"""The responses of an iteration as PPO trains on them: each is a rollout with its reward, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TrainingArguments

from adaptpo.choices.policy_update import PPO
from adaptpo.models.collate import Batch, response_rows, token_mask
from adaptpo.models.inference import autocast, to_device
from adaptpo.models.packing import PADDED, RowPacking, token_batches
from adaptpo.training.ppo import PPOTokens, generalized_advantages, token_rewards, whiten
from adaptpo.types import Prompt, Response

TokenValues = list[list[float]]
"""One list per response, one number per token."""


@dataclass(frozen=True)
class RatedPrompt:
    """A prompt with its fresh responses that have a reward, and their indices among all its responses."""

    prompt: Prompt
    indices: list[int]
    responses: list[Response]
    rewards: list[float]


@dataclass(frozen=True)
class Rollout:
    """A response with one number per token for each field of `PPOTokens` in `FIELDS`."""

    response: Response
    old: list[float]
    advantages: list[float]
    values: list[float]
    returns: list[float]


@dataclass(frozen=True)
class RolloutGroup:
    """One prompt with all its rollouts: the unit of batching."""

    prompt: Prompt
    rollouts: list[Rollout]

    @property
    def responses(self) -> list[Response]:
        return [rollout.response for rollout in self.rollouts]


FIELDS = ("old", "advantages", "values", "returns")


def answer_batch(groups: Sequence[RatedPrompt | RolloutGroup], pad_id: int, rows: RowPacking) -> Batch:
    """The rows of a forward pass over all responses of these prompts."""
    members = [(index, response) for index, group in enumerate(groups) for response in group.responses]
    responses = [response for _, response in members]
    return response_rows(groups, responses, [index for index, _ in members], pad_id, rows)


@torch.inference_mode()
def evaluate_tokens(
    prompts: Sequence[RatedPrompt],
    compute: Callable[[Batch], Tensor],
    pad_id: int,
    args: TrainingArguments,
    rows: RowPacking = PADDED,
) -> list[TokenValues]:
    """The values that `compute` returns ([n, longest] per batch) for each response, by prompt in the given order."""
    found: dict[int, TokenValues] = {}
    for indices in token_batches(prompts, rows):
        chosen = [prompts[i] for i in indices]
        with autocast(args):
            values = compute(to_device(answer_batch(chosen, pad_id, rows), args.device))
        lines = iter(values.float().tolist())
        for index, prompt in zip(indices, chosen, strict=True):
            found[index] = [next(lines)[: len(response.ids)] for response in prompt.responses]
    return [found[index] for index in range(len(prompts))]


def padded_floats(lists: Sequence[Sequence[float]]) -> Tensor:
    """[n, longest] float32, 0 after the end of each list."""
    tensors = [torch.tensor(values, dtype=torch.float32) for values in lists]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def scores(prompts: Sequence[RatedPrompt], cut_penalty: float) -> Tensor:
    """The reward of each response, minus the penalty if it did not end, [n]."""
    rated = [pair for prompt in prompts for pair in zip(prompt.responses, prompt.rewards, strict=True)]
    return torch.tensor([reward - (0.0 if response.ended else cut_penalty) for response, reward in rated])


def ppo_tokens(
    prompts: Sequence[RatedPrompt], old: TokenValues, reference: TokenValues, values: TokenValues, settings: PPO
) -> PPOTokens:
    """Advantages, whitened over all tokens of the iteration, and returns of all n responses."""
    mask = token_mask([len(line) for line in old])
    before, kept, judged = padded_floats(old), padded_floats(reference), padded_floats(values)
    rewards = token_rewards(scores(prompts, settings.cut_penalty), before, kept, mask, settings.kl_coef)
    advantages = generalized_advantages(rewards, judged, mask, settings.gamma, settings.gae_lambda)
    return PPOTokens(before, whiten(advantages, mask), judged, advantages + judged, mask)


def rollout_groups(prompts: Sequence[RatedPrompt], tokens: PPOTokens) -> list[RolloutGroup]:
    lengths = tokens.mask.sum(dim=1).tolist()
    columns = [getattr(tokens, name).tolist() for name in FIELDS]
    lines = iter(zip(lengths, *columns, strict=True))

    def rollout(response: Response) -> Rollout:
        length, *values = next(lines)
        return Rollout(response, *(line[:length] for line in values))

    return [RolloutGroup(prompt.prompt, [rollout(response) for response in prompt.responses]) for prompt in prompts]


@dataclass(frozen=True)
class RolloutCollator:
    """Turns prompts with their rollouts into one batch, with all rollouts of a prompt next to each other."""

    pad_id: int
    rows: RowPacking = PADDED

    def __call__(self, groups: Sequence[RolloutGroup]) -> Batch:
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        return {
            **answer_batch(groups, self.pad_id, self.rows),
            **{name: padded_floats([getattr(rollout, name) for rollout in rollouts]) for name in FIELDS},
            "prompt_id": torch.tensor([group.prompt.id for group in groups]),
        }

    def batches(self, groups: Sequence[RolloutGroup]) -> list[Batch]:
        """Batches of whole groups within `rows.max_tokens`."""
        return [self([groups[i] for i in indices]) for indices in token_batches(groups, self.rows)]


def batch_tokens(batch: Batch) -> PPOTokens:
    return PPOTokens(**{name: batch[name] for name in FIELDS}, mask=batch["response_mask"])
