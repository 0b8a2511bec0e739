"""How an iteration trains the policy: on preference pairs, or on every response with its reward.

Settings alone; the work behind each is in `adaptpo.pipeline.iteration`. Adding one: the class here with its line in
`POLICY_TRAINERS`, and the phases of its iteration there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from adaptpo.errors import ConfigError


class PolicyTrainer:
    """What a method does with the selected prompts of an iteration.

    `trains_on`: the method's pairs, rollouts that are kept before training, or groups of responses that the trainer
    generates itself. `samples_plainly`: its importance ratios hold
    for responses that were drawn at temperature 1 from the whole distribution. `fewest_responses`: to one prompt.
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
    """The method's objective and weighting on its pairs."""

    trains_on = "pairs"


@dataclass(frozen=True)
class PPO(PolicyTrainer):
    """Proximal policy optimization with a critic (Schulman et al., 2017; Ouyang et al., 2022).

    `clip` and `value_clip`: epsilon of the policy's ratio and of the values. `kl_coef`: beta of the per-token KL to the
    reference. `gamma` and `gae_lambda`: discount and trace of generalized advantage estimation. `epochs` over the
    responses of an iteration, unless the recipe sets `training.num_train_epochs`. `critic_learning_rate`: None is ten
    times the policy's. `cut_penalty` is taken from the reward of a response that did not end.
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
                raise ConfigError(f"{name} is {getattr(self, name)}; it is between 0 and 1")
        if self.epochs < 1:
            raise ConfigError(f"epochs is {self.epochs}; PPO passes over the responses once or more")
        refuse_negative(self)


@dataclass(frozen=True)
class GroupPolicyGradient(PolicyTrainer):
    """A policy gradient whose baseline is the other responses to the prompt, by a trainer of TRL.

    `epsilon`: the clip of the ratio. `beta`: of the KL to the reference. `algorithm`: TRL's name for it.
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
    """Advantages are rewards less the mean of the prompt's other responses (Ahmadian et al., 2024).

    The KL is part of the reward.
    """

    algorithm = "RLOO"


def refuse_negative(trainer: PPO | GroupPolicyGradient) -> None:
    for field in fields(trainer):
        value = getattr(trainer, field.name)
        if value is not None and value < 0:
            raise ConfigError(f"{field.name} is {value}; give 0 or more")


POLICY_TRAINERS: dict[str, type[PolicyTrainer]] = {"pairs": OnPairs, "ppo": PPO, "grpo": GRPO, "rloo": RLOO}
