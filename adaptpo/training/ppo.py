"""The mathematics of PPO on responses, as pure functions. Every tensor is [n, longest], 0 where `mask` is false.

Position t is the response's t-th token: `values` are those of the state before it, and the token is the action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptpo.choices.policy_update import PPO


def token_rewards(scores: Tensor, old: Tensor, reference: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """`-kl_coef * (log pi_old - log pi_ref)` at every token, plus the response's score [n] at its last one.

    The KL term is the estimator k1, as in Stiennon et al., 2020 (its reward R) and Ouyang et al., 2022 (Eq. 2).
    """
    rewards = -kl_coef * (old - reference) * mask
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None])


def generalized_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """`A_t = delta_t + gamma * gae_lambda * A_(t+1)`, `delta_t = r_t + gamma * V_(t+1) - V_t` (Schulman et al., 2017,
    Eqs. 11 and 12). After a response's last token both V and A are 0."""
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(following)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * gae_lambda * following) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = following
    return advantages


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """The values with mean 0 and variance 1 over all tokens; all 0 if they are equal."""
    present = values[mask]
    deviation = present.std(correction=0)
    return (values - present.mean()) / (deviation + 1e-8) * mask


def policy_losses(logps: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """`-min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A)` of each token (Schulman et al., 2017, Eq. 7)."""
    ratio = (logps - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_losses(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error of each token's value, or, if larger, of the value clipped to within `clip` of the old."""
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


@dataclass(frozen=True)
class PPOTokens:
    """The quantities that stay fixed in training on these responses: no gradient, float32. `returns` are A + V."""

    old: Tensor
    advantages: Tensor
    values: Tensor
    returns: Tensor
    mask: Tensor


def ppo_loss(logps: Tensor, values: Tensor, tokens: PPOTokens, settings: PPO) -> tuple[Tensor, dict[str, float]]:
    """The sum over tokens of policy and value loss (the caller divides), and means over tokens for the log."""
    policy = policy_losses(logps, tokens.old, tokens.advantages, settings.clip)[tokens.mask]
    value = value_losses(values, tokens.values, tokens.returns, settings.value_clip)[tokens.mask]
    return (policy + settings.value_coef * value).sum(), token_metrics(logps, policy, value, tokens, settings.clip)


@torch.no_grad()
def token_metrics(logps: Tensor, policy: Tensor, value: Tensor, tokens: PPOTokens, clip: float) -> dict[str, float]:
    difference = (logps - tokens.old)[tokens.mask]
    figures = {
        "loss/policy": policy,
        "loss/value": value,
        "policy/clipped": ((difference.exp() - 1).abs() > clip).float(),
        "policy/approx_kl": 0.5 * difference**2,
        "returns": tokens.returns[tokens.mask],
    }
    return {name: figure.float().mean().item() for name, figure in figures.items()}
