"""How an iteration trains the policy: on preference pairs, or on every response with its reward.

These classes hold only settings; `adaptpo.pipeline.iteration` does the work. To add one, write its class here, list it
in `POLICY_TRAINERS`, and add the phases of its iteration there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from adaptpo.errors import ConfigError


class PolicyTrainer:
    """How a method trains on the selected prompts of an iteration.

    `trains_on`: the method's pairs, rollouts that are stored before training, or groups of responses that the trainer
    generates itself. `samples_plainly`: whether its importance ratios hold only for responses drawn at temperature 1
    from the whole distribution. `fewest_responses`: minimum number of responses per prompt.
    """

    trains_on: ClassVar[Literal["pairs", "rollouts", "groups"]]
    samples_plainly: ClassVar[bool] = False
    fewest_responses: ClassVar[int] = 0
    epochs: int = 1

    @property
    def uses_pairs(self) -> bool:
        return self.trains_on == "pairs"


@dataclass(frozen=True)
class OnPairs(PolicyTrainer):
    """Trains on the method's pairs, with its objective and weighting."""

    trains_on = "pairs"


@dataclass(frozen=True)
class PPO(PolicyTrainer):
    """Proximal policy optimization with a critic (Schulman et al., 2017; Ouyang et al., 2022).

    `clip` and `value_clip`: clipping epsilon of the policy's ratio and of the values. `kl_coef`: beta of the per-token
    KL to the reference. `gamma` and `gae_lambda`: discount and lambda of generalized advantage estimation. `epochs`:
    passes over an iteration's responses, unless the recipe sets `training.num_train_epochs`. `critic_learning_rate`:
    None is ten times the policy's. `cut_penalty`: subtracted from the reward of a response that did not end.
    """

    clip: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 0.1
    kl_coef: float = 0.05
    gamma: float = 1.0
    gae_lambda: float = 0.95
    epochs: int = 1
    critic_learning_rate: float | None = None
    cut_penalty: float = 0.0
    trains_on = "rollouts"
    samples_plainly: ClassVar[bool] = True
    fewest_responses: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; set it between 0 and 1")
        if self.epochs < 1:
            raise ConfigError(f"epochs is {self.epochs}; set it to 1 or more")
        refuse_negative(self)


@dataclass(frozen=True)
class GroupPolicyGradient(PolicyTrainer):
    """A policy gradient whose baseline is the prompt's other responses, with one of TRL's trainers.

    `epsilon`: clipping range of the ratio. `beta`: coefficient of the KL to the reference. `algorithm`: TRL's name.
    """

    algorithm: ClassVar[Literal["GRPO", "RLOO"]]

    epsilon: float = 0.2
    beta: float = 0.04
    trains_on = "groups"
    fewest_responses: ClassVar[int] = 2

    def __post_init__(self) -> None:
        refuse_negative(self)


@dataclass(frozen=True)
class GRPO(GroupPolicyGradient):
    """Advantages are rewards standardized within the prompt (Shao et al., 2024)."""

    algorithm = "GRPO"


@dataclass(frozen=True)
class RLOO(GroupPolicyGradient):
    """Advantages are rewards minus the mean of the prompt's other responses (Ahmadian et al., 2024).

    The KL is part of the reward.
    """

    algorithm = "RLOO"


def refuse_negative(trainer: PPO | GroupPolicyGradient) -> None:
    for field in fields(trainer):
        value = getattr(trainer, field.name)
        if value is not None and value < 0:
            raise ConfigError(f"{field.name} is {value}; set it to 0 or more")


POLICY_TRAINERS: dict[str, type[PolicyTrainer]] = {"pairs": OnPairs, "ppo": PPO, "grpo": GRPO, "rloo": RLOO}
