"""The settings of a world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adaptpo.errors import ConfigError
from adaptpo.sandbox.world import PROMPT_SPACE, TOPICS, parse_prompt

TRUE_REWARD = "python:adaptpo.sandbox.world:true_reward"
FEWEST_PROMPTS = 16
OTHER_TOPICS = frozenset(list(TOPICS)[len(TOPICS) // 2 :])
MANY = 8
LAST = 0.03
"""The share of the rows that `last_flipped` is about: that which MetaPO holds out."""


@dataclass(frozen=True)
class WorldSettings:
    """The settings of a world, saved in its `world.json`.

    `prompts` and `heldout` are the numbers of rows in the two data files. `writer_qualities`: one per offline writer.
    `flipped`: share of offline pairs with a wrong label (held-out pairs have none). `last_flipped`: that share among
    the last 3 % of the offline pairs, which a run with `validation_split: last` holds out, if it differs.
    `sft_qualities`: range of quality of the responses in SFT, with `sft_responses` per prompt. `reward_flipped`: share
    of wrong labels among the reward model's pairs.

    Some prompts may have different needs: the `others`, which are those of the last four topics (`topic`) or those that
    ask for many items (`many`). `other_sft_qualities` and `other_flipped` apply to them if given. With `other_near`,
    their offline responses have the habits of the writer in SFT and so lie near the policy's distribution. Raises
    ConfigError for impossible settings.
    """

    prompts: int = 3000
    heldout: int = 400
    seed: int = 0
    writer_qualities: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    flipped: float = 0.1
    sft_responses: int = 3
    sft_qualities: tuple[float, float] = (0.4, 0.7)
    sft_epochs: float = 2
    sft_learning_rate: float = 3e-3
    reward_flipped: float = 0.05
    reward_epochs: float = 3
    reward_learning_rate: float = 2e-3
    true_reward: str = TRUE_REWARD
    others: Literal["topic", "many"] = "topic"
    other_sft_qualities: tuple[float, float] | None = None
    other_flipped: float | None = None
    other_near: bool = False
    last_flipped: float | None = None

    def __post_init__(self) -> None:
        if self.prompts < FEWEST_PROMPTS:
            raise ConfigError(f"a sandbox needs at least {FEWEST_PROMPTS} prompts (found {self.prompts})")
        if self.heldout < 1:
            raise ConfigError(f"a sandbox needs at least 1 held-out prompt (heldout is {self.heldout})")
        if self.prompts + self.heldout > PROMPT_SPACE:
            raise ConfigError(
                f"the world has {PROMPT_SPACE} prompts, not {self.prompts} + {self.heldout}; ask for fewer"
            )
        shares = (self.flipped, self.other_flipped or 0.0, self.last_flipped or 0.0, self.reward_flipped)
        if not all(0 <= share <= 1 for share in shares):
            raise ConfigError(
                "flipped, other_flipped, last_flipped and reward_flipped are shares; give numbers from 0 to 1"
            )

    def is_other(self, prompt: str) -> bool:
        task = parse_prompt(prompt)
        return task.topic in OTHER_TOPICS if self.others == "topic" else task.count == MANY

    def sft_qualities_of(self, prompt: str) -> tuple[float, float]:
        given = self.other_sft_qualities
        return given if given is not None and self.is_other(prompt) else self.sft_qualities

    def flipped_of(self, number: int, prompt: str) -> float:
        """The share of wrong labels that row `number` (from 0) of the training data is drawn with."""
        if self.last_flipped is not None and number >= self.prompts - round(LAST * self.prompts):
            return self.last_flipped
        given = self.other_flipped
        return given if given is not None and self.is_other(prompt) else self.flipped
