"""How an iteration trains the policy: on preference pairs, or on every response with its reward.

These classes hold only settings; `adaptpo.pipeline.iteration` does the work. To add one, write its class here, list it
in `POLICY_TRAINERS`, and add the phases of its iteration there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from adaptpo.config.numbers import Count, Fraction, LearningRate, NonNegative, Positive, Ranged


class PolicyTrainer(Ranged):
    """How a method trains on the selected prompts of an iteration.

    `trains_on`: the method's pairs, rollouts that are stored before training, or groups of responses that the trainer
    generates itself. `samples_plainly`: whether its importance ratios hold only for responses drawn at temperature 1
    from the whole distribution. `fewest_responses`: minimum number of responses per prompt.
    """

    trains_on: ClassVar[Literal["pairs", "rollouts", "groups"]]
    samples_plainly: ClassVar[bool] = False
    fewest_responses: ClassVar[int] = 0
    epochs: Count = 1

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

    clip: Positive = 0.2
    value_clip: Positive = 0.2
    value_coef: NonNegative = 0.1
    kl_coef: NonNegative = 0.05
    gamma: Fraction = 1.0
    gae_lambda: Fraction = 0.95
    epochs: Count = 1
    critic_learning_rate: LearningRate | None = None
    cut_penalty: NonNegative = 0.0
    trains_on = "rollouts"
    samples_plainly: ClassVar[bool] = True
    fewest_responses: ClassVar[int] = 1


@dataclass(frozen=True)
class GroupPolicyGradient(PolicyTrainer):
    """A policy gradient whose baseline is the prompt's other responses, with one of TRL's trainers.

    `epsilon`: clipping range of the ratio. `beta`: coefficient of the KL to the reference. `algorithm`: TRL's name.
    """

    algorithm: ClassVar[Literal["GRPO", "RLOO"]]

    epsilon: Positive = 0.2
    beta: NonNegative = 0.04
    trains_on = "groups"
    fewest_responses: ClassVar[int] = 2


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


POLICY_TRAINERS: dict[str, type[PolicyTrainer]] = {"pairs": OnPairs, "ppo": PPO, "grpo": GRPO, "rloo": RLOO}
