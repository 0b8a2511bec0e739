"""The pairing axis: which preference pairs a prompt contributes.

To add one, write its class here and list it in `PAIRINGS`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from adaptpo.choices.choice import Choice
from adaptpo.choices.iteration import Iteration
from adaptpo.config.numbers import CountOrZero, Ranged, Responses
from adaptpo.errors import ConfigError
from adaptpo.types import PreferencePair, Response


@dataclass(frozen=True)
class Candidates:
    """The annotated fresh responses to one prompt; a reward is None if its annotation failed.

    `offline_rewards` are those of the offline pair's chosen and rejected response, if the pairing ranks them too;
    `reward_vectors` are each response's rewards for several objectives, if the pairing ranks by those.
    """

    prompt_id: int
    iteration: int
    responses: tuple[Response, ...]
    rewards: tuple[float | None, ...]
    offline_rewards: tuple[float | None, float | None] = (None, None)
    reward_vectors: tuple[Sequence[float] | None, ...] = ()


@dataclass(frozen=True)
class NoPair:
    """The reason why a prompt's candidates form no pair. The loop counts and records it."""

    reason: str


def best_against_worst(candidates: Candidates) -> PreferencePair | NoPair:
    """Pairs the best with the worst of K by reward (MetaAPO, section 4.1). Ties go to the first."""
    rated = [(i, r) for i, r in enumerate(candidates.rewards) if r is not None and not math.isnan(r)]
    if len(rated) < 2:
        return NoPair(f"{len(rated)} responses with a valid reward, a pair needs 2")
    best, high = max(rated, key=lambda ir: ir[1])
    worst, low = min(rated, key=lambda ir: ir[1])
    chosen, rejected = candidates.responses[best], candidates.responses[worst]
    if high == low:
        return NoPair("best and worst response have the same reward")
    if chosen.ids == rejected.ids:
        return NoPair("best and worst response have the same text")
    return PreferencePair(
        prompt_id=candidates.prompt_id,
        source="online",
        chosen=chosen,
        rejected=rejected,
        iteration=candidates.iteration,
        reward_gap=high - low,
    )


def known(offline: PreferencePair | None) -> tuple[PreferencePair, ...]:
    return () if offline is None else (offline,)


class Pairing(Choice, ABC):
    """One of the four choices. `num_generations` (K) is 0 for pairings that use no fresh responses. With
    `ranks_offline`, the responses of the offline pair are annotated as well; with `keep_sample`, each pair keeps a
    fresh response for objectives that need one. `num_rewards` is the number of rewards that rank each response, 0 if
    the annotator's single reward does."""

    keep_sample: bool = False
    num_rewards: CountOrZero = 0
    ranks_offline: ClassVar[bool] = False

    @property
    def num_generations(self) -> int:
        return 0

    @property
    def takes_prompts(self) -> bool:
        """Whether it makes use of prompts without an offline pair, from fresh responses alone, in every iteration."""
        return self.num_generations > 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_generations == 1:
            raise ConfigError("num_generations is 1, but a pair needs 2 responses; set it to 2 or more")

    def at(self, now: Iteration) -> Pairing:
        return self

    @abstractmethod
    def pairs(
        self, offline: PreferencePair | None, candidates: Candidates | None
    ) -> tuple[PreferencePair, ...] | NoPair:
        """The pairs of a prompt. `offline` is None if it has no offline pair, which only happens with `takes_prompts`;
        `candidates` is None if it was not selected."""


@dataclass(frozen=True)
class Offline(Pairing):
    """The data set's pair, whether or not the prompt was selected."""

    def pairs(self, offline: PreferencePair | None, candidates: Candidates | None) -> tuple[PreferencePair, ...]:
        return known(offline)


@dataclass(frozen=True)
class Online(Pairing):
    """The best against the worst of K fresh responses; unselected prompts are left out of the iteration."""

    num_generations: Responses = 8

    def pairs(
        self, offline: PreferencePair | None, candidates: Candidates | None
    ) -> tuple[PreferencePair, ...] | NoPair:
        if candidates is None:
            return ()
        online = best_against_worst(candidates)
        return online if isinstance(online, NoPair) else (online,)


@dataclass(frozen=True)
class OfflineAndOnline(Pairing):
    """MetaAPO's tuple (section 4.1, Algorithm 1 line 12): the offline pair, and the best against the worst of K.

    Unselected prompts, and selected ones whose responses form no pair, are left out of this iteration's training. With
    `keep_unselected`, their offline pair stays, with weight 1 (Table 7, "w/ All Offline Samples").
    """

    num_generations: Responses = 8
    keep_unselected: bool = False

    def pairs(
        self, offline: PreferencePair | None, candidates: Candidates | None
    ) -> tuple[PreferencePair, ...] | NoPair:
        alone = known(offline) if self.keep_unselected else ()
        if candidates is None:
            return alone
        online = best_against_worst(candidates)
        if isinstance(online, NoPair):
            return alone or online
        return (*known(offline), online)


@dataclass(frozen=True)
class MixedPool(Pairing):
    """The best against the worst of K fresh responses and both offline responses (SELM, Zhang et al., 2024).

    A prompt without fresh responses keeps its offline pair. The pair's source is `offline` if it is the offline pair
    itself, and `mixed` if one of its responses is an offline one (or both are, in reverse order). With `keep_sample`,
    the sample is the first fresh response, whatever its rank.
    """

    num_generations: Responses = 8
    keep_sample: bool = False
    ranks_offline: ClassVar[bool] = True

    def pairs(
        self, offline: PreferencePair | None, candidates: Candidates | None
    ) -> tuple[PreferencePair, ...] | NoPair:
        if candidates is None:
            return known(offline)
        pair = self.ranked(offline, candidates, pool_of(offline, candidates))
        return pair if isinstance(pair, NoPair) else (pair,)

    def ranked(
        self, offline: PreferencePair | None, candidates: Candidates, pool: Candidates
    ) -> PreferencePair | NoPair:
        """The best against the worst of what is in the pool."""
        pair = best_against_worst(pool)
        if isinstance(pair, NoPair):
            return pair
        pair = replace(pair, sample=candidates.responses[0]) if self.keep_sample else pair
        return pair if offline is None else named_by_origin(pair, offline)


@dataclass(frozen=True)
class NestedPool(MixedPool):
    """A mixed pool of which every response is used: the best against the worst, the second best against the second
    worst, and so on. A response in the middle, and pairs that rank nothing, are left out."""

    num_generations: Responses = 2

    def pairs(
        self, offline: PreferencePair | None, candidates: Candidates | None
    ) -> tuple[PreferencePair, ...] | NoPair:
        if candidates is None:
            return known(offline)
        found: list[PreferencePair] = []
        pool = pool_of(offline, candidates)
        while not isinstance(pair := self.ranked(offline, candidates, pool), NoPair):
            found.append(pair)
            pool = without(pool, pair)
        return tuple(found) or pair


def pool_of(offline: PreferencePair | None, candidates: Candidates) -> Candidates:
    """The candidates, and the responses of the offline pair if there is one."""
    if offline is None:
        return candidates
    return replace(
        candidates,
        responses=(*candidates.responses, offline.chosen, offline.rejected),
        rewards=(*candidates.rewards, *candidates.offline_rewards),
    )


def without(pool: Candidates, pair: PreferencePair) -> Candidates:
    rest = [
        i for i, response in enumerate(pool.responses) if response is not pair.chosen and response is not pair.rejected
    ]
    return replace(pool, responses=tuple(pool.responses[i] for i in rest), rewards=tuple(pool.rewards[i] for i in rest))


def named_by_origin(pair: PreferencePair, offline: PreferencePair) -> PreferencePair:
    """The pair of a mixed pool with its source; the offline pair itself if that is what ranks best and worst."""
    if pair.chosen is offline.chosen and pair.rejected is offline.rejected:
        return replace(offline, reward_gap=pair.reward_gap, sample=pair.sample)
    old_ones = [side for side in (pair.chosen, pair.rejected) if side is offline.chosen or side is offline.rejected]
    return replace(pair, source="mixed" if old_ones else "online")


@dataclass(frozen=True)
class Rollouts(Pairing):
    """No pairs: every fresh response counts by its own reward, for policy trainers that use no pairs."""

    num_generations: Responses = 8

    def __post_init__(self) -> None:
        Ranged.__post_init__(self)  # One rollout is enough.

    def pairs(self, offline: PreferencePair | None, candidates: Candidates | None) -> tuple[PreferencePair, ...]:
        return ()


@dataclass(frozen=True)
class OnePairPerObjective(Pairing):
    """The offline pair, and the best against the worst of K by each of M rewards (MetaAPO, section 4.1: M objectives,
    each with its own partial preference relation).

    A prompt whose responses form no pair for one of the objectives is left out of this iteration's training.
    """

    num_generations: Responses = 8
    num_rewards: CountOrZero = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_rewards < 2:
            raise ConfigError(f"objectives is {self.num_rewards}; set 2 or more, or use the method metaapo")

    def pairs(
        self, offline: PreferencePair | None, candidates: Candidates | None
    ) -> tuple[PreferencePair, ...] | NoPair:
        if candidates is None:
            return ()
        made = [*known(offline)]
        for number in range(self.num_rewards):
            rewards = tuple(None if several is None else several[number] for several in candidates.reward_vectors)
            pair = best_against_worst(replace(candidates, rewards=rewards))
            if isinstance(pair, NoPair):
                return NoPair(f"objective {number}: {pair.reason}")
            made.append(replace(pair, objective=number))
        return tuple(made)


@dataclass(frozen=True)
class PairingSchedule(Pairing):
    """A fixed sequence of pairings: the run's iterations are divided evenly among `plan` (Table 1 of the
    alignment-stages paper has two iterations). Outside an iteration, the first pairing applies. With `measured`, the
    stage is measured before each iteration, as in the paper's Table 3, without effect on the schedule."""

    plan: tuple[Pairing, ...] = (Offline(), Online())
    measured: bool = False

    def __post_init__(self) -> None:
        if not self.plan:
            raise ConfigError("the schedule is empty; give at least one pairing")

    @property
    def num_generations(self) -> int:
        return max(pairing.num_generations for pairing in self.plan)

    @property
    def takes_prompts(self) -> bool:
        return all(pairing.takes_prompts for pairing in self.plan)

    def needs_stage(self, iteration: int) -> bool:
        return self.measured

    def at(self, now: Iteration) -> Pairing:
        return self.plan[now.number * len(self.plan) // now.count].at(now)

    def pairs(
        self, offline: PreferencePair | None, candidates: Candidates | None
    ) -> tuple[PreferencePair, ...] | NoPair:
        return self.plan[0].pairs(offline, candidates)


@dataclass(frozen=True)
class PairingByStage(Pairing):
    """The offline pair while the policy is in the preference injection stage, the best against the worst of K fresh
    responses once it is in the fine-tuning stage (the alignment-stages paper, section 5)."""

    num_generations: Responses = 2

    @property
    def takes_prompts(self) -> bool:
        return False

    def needs_stage(self, iteration: int) -> bool:
        return True

    def at(self, now: Iteration) -> Pairing:
        return Offline() if now.measured().injection else Online(self.num_generations)

    def pairs(
        self, offline: PreferencePair | None, candidates: Candidates | None
    ) -> tuple[PreferencePair, ...] | NoPair:
        return Online(self.num_generations).pairs(offline, candidates)


PAIRINGS: dict[str, type[Pairing]] = {
    "offline": Offline,
    "online": Online,
    "offline_and_online": OfflineAndOnline,
    "mixed_pool": MixedPool,
    "nested_pool": NestedPool,
    "rollouts": Rollouts,
    "one_per_objective": OnePairPerObjective,
    "schedule": PairingSchedule,
    "by_stage": PairingByStage,
}
