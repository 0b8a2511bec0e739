"""Turns comparisons of two responses into one reward per response."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Literal, Protocol

from adaptpo.annotation.base import Annotator, Couple, Request, answer_in_words, as_text, request_in_words
from adaptpo.remote.usage import Usage, take
from adaptpo.types import Prompt, Response

Opponents = Literal["all", "first"]
Pairing = tuple[int, int]
"""The indices of two requests."""


@dataclass(frozen=True)
class Match:
    prompt: Prompt
    first: Response
    second: Response

    @property
    def in_words(self) -> tuple[str, str, str]:
        """What was asked, and both answers."""
        asked = request_in_words(self.prompt, self.first)
        return asked, answer_in_words(self.prompt, self.first), answer_in_words(self.prompt, self.second)


class Comparer(Protocol):
    usage: Usage

    def compare(self, matches: Sequence[Match]) -> list[float | None]:
        """How much the first response is preferred to the second; negative if the second is, None without a verdict."""
        ...

    def probe(self) -> None:
        """See `Annotator.probe`."""
        ...


class Tournament(Annotator):
    """Compares the responses to each prompt in both orders.

    `s_ij = (c(i, j) - c(j, i)) / 2` is antisymmetric whatever the comparer's position bias; the reward of response i is
    the mean of `s_ij` over its opponents j. With `all`, every response meets every other in K(K-1) comparisons. With
    `first`, every other response meets the first one in 2(K-1) comparisons, and the first response's own reward is 0.
    Equal texts are a draw without a comparison. A match without a verdict in both orders does not count; a response
    without a match that counts has no reward.
    """

    relative = True

    def __init__(self, comparer: Comparer, opponents: Opponents = "all") -> None:
        self.comparer, self.opponents = comparer, opponents

    def probe(self) -> None:
        self.comparer.probe()

    def take_usage(self) -> dict[str, int]:
        return take(self.comparer.usage)

    def rewards(self, requests: Sequence[Request]) -> list[float | None]:
        pairings = [pairing for places in by_prompt(requests) for pairing in self._pairings(places)]
        results: dict[int, list[float]] = defaultdict(list)
        for (i, j), advantage in zip(pairings, self._advantages(requests, pairings), strict=True):
            if advantage is not None:
                results[i].append(advantage)
                results[j].append(-advantage)
        if self.opponents == "first":
            results |= {places[0]: [0.0] for places in by_prompt(requests) if places[0] in results}
        return [fmean(results[place]) if results[place] else None for place in range(len(requests))]

    def advantages(self, couples: Sequence[Couple]) -> list[float | None]:
        """`s_ij` of each couple, compared directly whatever the `opponents`."""
        requests = [request for couple in couples for request in couple]
        return self._advantages(requests, [(place, place + 1) for place in range(0, len(requests), 2)])

    def _pairings(self, places: Sequence[int]) -> list[Pairing]:
        if self.opponents == "first":
            return [(places[0], other) for other in places[1:]]
        return list(combinations(places, 2))

    def _advantages(self, requests: Sequence[Request], pairings: Sequence[Pairing]) -> list[float | None]:
        """`s_ij` of each pairing."""
        played = [pair for pair in pairings if differ(requests, pair)]
        orders = [order for i, j in played for order in ((i, j), (j, i))]
        matches = [Match(requests[i][0], requests[i][1], requests[j][1]) for i, j in orders]
        verdicts = self.comparer.compare(matches) if matches else []
        both = zip(verdicts[0::2], verdicts[1::2], strict=True)
        found = {pair: self._advantage(*two) for pair, two in zip(played, both, strict=True)}
        return [found.get(pair, 0.0) for pair in pairings]

    def _advantage(self, forward: float | None, backward: float | None) -> float | None:
        if forward is None or backward is None:
            self.comparer.usage["matches_without_verdict"] += 1
            return None
        if forward * backward > 0:
            self.comparer.usage["orders_disagree"] += 1
        return (forward - backward) / 2


def by_prompt(requests: Sequence[Request]) -> list[list[int]]:
    """The indices of each prompt's responses."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, (prompt, _) in enumerate(requests):
        places[prompt.id].append(place)
    return list(places.values())


def differ(requests: Sequence[Request], pairing: Pairing) -> bool:
    first, second = (as_text(requests[place][1].text) for place in pairing)
    return first != second
