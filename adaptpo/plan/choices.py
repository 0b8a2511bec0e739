"""What a method contributes for the prompts of an iteration, found by calling the method's own choices."""

from __future__ import annotations

from dataclasses import dataclass

from adaptpo.choices.iteration import UNKNOWN_STAGE, Iteration
from adaptpo.choices.method import Method
from adaptpo.choices.pairing import Candidates, NoPair, Pairing
from adaptpo.types import PreferencePair, Response

CHOSEN, REJECTED, FRESH = "chosen", "rejected", "fresh"


def method_in(method: Method, number: int, count: int) -> Method:
    """The method in an iteration; a stage still to be measured is assumed to be fine-tuning, the more expensive one."""
    return method.at(Iteration(number, count, UNKNOWN_STAGE))


Sides = tuple[str, ...]
"""The kind of response in each place: the offline `chosen` or `rejected` one, or a `fresh` one."""


@dataclass(frozen=True)
class Contribution:
    """The pairs of one prompt: the responses that are trained on together, those of each pair, and those of each pair
    that does not come from the data set."""

    group: Sides
    pairs: tuple[Sides, ...]
    new_pairs: tuple[Sides, ...]


def contribution(pairing: Pairing, selected: bool, has_pair: bool = True) -> Contribution:
    """The contribution found by pairing placeholders; fresh responses rank best and worst, offline ones in between."""
    offline = PreferencePair(0, "offline", Response(CHOSEN, [0]), Response(REJECTED, [1]))
    outcome = pairing.pairs(offline if has_pair else None, placeholders(pairing) if selected else None)
    pairs = () if isinstance(outcome, NoPair) else outcome
    group = tuple(text for pair in pairs for text in texts(pair, with_sample=True))
    return Contribution(
        group,
        tuple(texts(pair) for pair in pairs),
        tuple(texts(pair) for pair in pairs if pair.source != "offline"),
    )


def placeholders(pairing: Pairing) -> Candidates | None:
    count = pairing.num_generations
    if not count:
        return None
    rewards = tuple(map(float, range(count)))
    return Candidates(
        prompt_id=0,
        iteration=0,
        responses=tuple(Response(FRESH, [2 + index]) for index in range(count)),
        rewards=rewards,
        offline_rewards=((count - 1) / 2, (count - 1) / 2),
        reward_vectors=tuple([reward] * pairing.num_rewards for reward in rewards),
    )


def texts(pair: PreferencePair, with_sample: bool = False) -> Sides:
    sides = (pair.chosen, pair.rejected, *([pair.sample] if with_sample and pair.sample else []))
    return tuple(str(side.text) for side in sides)
