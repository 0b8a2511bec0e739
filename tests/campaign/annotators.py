"""Reward functions that return or raise anything, and servers that answer anything: a reward, none, or a refusal."""

from __future__ import annotations

import json
import math
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptpo.annotation.base import Annotator, Request
from adaptpo.annotation.function import FunctionAnnotator
from adaptpo.annotation.judge import ComparingJudge, Judge, ScoringJudge
from adaptpo.annotation.server import RewardServer, VllmRewardServer
from adaptpo.annotation.tournament import Tournament
from adaptpo.errors import AnnotationError
from adaptpo.remote.endpoint import Access
from adaptpo.remote.store import AnswerStore
from adaptpo.types import Prompt, Response
from tests.campaign.outcomes import Nonsense
from tests.stub import Reply, serving

REQUESTS: list[Request] = [
    (Prompt(number, "say tea", [], {"a": number}), Response(text, [1])) for number, text in enumerate(("tea", "b", ""))
]
VALUES: list[Any] = [
    *(1.0, 0, -3, True, None, math.nan, math.inf, -math.inf, 1e308, 10**400, "1.5", "x", b"1", "", [], [1.0], {}),
    *(np.float32(1), np.int64(2), np.array([1.0, 2.0]), torch.tensor(1.0), torch.tensor([1.0]), 1j, float, Exception()),
]
ERRORS: list[Callable[[], Any]] = [
    lambda: sys.exit(0), lambda: os._exit(0), lambda: 1 / 0, lambda: [][1], lambda: Path("/nowhere").read_text(),
]  # fmt: skip


def returned(rng: random.Random) -> Any:
    values = [rng.choice(VALUES) for _ in range(rng.choice([3, 3, 3, 3, 0, 2, 4]))]
    several = [values, tuple(values), iter(values), values[:1], "abc", {0: 1.0}, None, torch.ones(3), np.ones((3, 1))]
    return rng.choice([values, *several])


def reward_function(rng: random.Random, folder: Path) -> None:
    """Rewards are finite numbers or None, one per response; else the function is named."""
    ends = rng.choice(ERRORS) if rng.random() < 0.3 else None
    found = returned(rng)

    def odd(**_: Any) -> Any:
        return found if ends is None else ends()

    number = rng.choice([0, 0, 2])
    try:
        require_rewards(FunctionAnnotator(odd, number))
    except AnnotationError as error:
        if "'odd'" not in str(error) or len(str(error)) > 2000:
            raise Nonsense(f"the message does not name the function: {str(error)[:300]}") from error
        raise


def require_rewards(annotator: Annotator) -> None:
    rewards = annotator.rewards(REQUESTS)
    if len(rewards) != len(REQUESTS):
        raise Nonsense(f"{len(rewards)} rewards for {len(REQUESTS)} responses")
    for reward in rewards:
        if reward is not None and not (type(reward) is float and math.isfinite(reward)):
            raise Nonsense(f"a reward is {reward!r}")


BODIES: list[Any] = [
    *(b"", b"not json", b"{", b"[" * 5000, b"\xff\xfe", b"null", b"[]", b"{}", b'{"a": NaN}', b"9" * 5000, b'"x"'),
    *({"rewards": [1.0, 2.0, 3.0]}, {"rewards": [1]}, {"rewards": ["1", "2", "3"]}, {"rewards": [None, 1.5, 2]}),
    *({"rewards": [10**400, 1, 1]}, {"rewards": [math.nan, 1, 1]}, {"rewards": {}}, {"rewards": None}, {"error": "x"}),
    *({"rewards": [True, False, True]}, {"data": [{"data": [1.0]}]}, {"data": []}, {"data": [{"data": "x"}]}),
]
WORDS = ["[[A]]", "[[B]]", "[[C]]", "A", "", "8", "[[9]]", "10/10", "x" * 5000, "\ud83d", None, 3, ["a"], {"a": 1}]


def body(rng: random.Random) -> Any:
    if rng.random() < 0.5:
        return rng.choice(BODIES)
    words = rng.choice(WORDS)
    message = rng.choice([{"role": "assistant", "content": words}, {}, None, "x", {"content": words}])
    choice = rng.choice([{"message": message, "finish_reason": rng.choice(["stop", "length", None, 3])}, None, 3, {}])
    usage = rng.choice([{"prompt_tokens": 3, "completion_tokens": 1}, None, "x", {"prompt_tokens": -1}, {}])
    return json.dumps({"choices": rng.choice([[choice], [], None, [choice] * 3]), "usage": usage}).encode()


def annotator(rng: random.Random, access: Access, store: AnswerStore) -> Annotator:
    judge = Judge("m", access, store, {})
    kinds: list[Callable[[], Annotator]] = [
        lambda: RewardServer(access, store, {}), lambda: VllmRewardServer(access, store, {}),
        lambda: ScoringJudge(judge), lambda: Tournament(ComparingJudge(judge)),
    ]  # fmt: skip
    return rng.choice(kinds)()


def server(rng: random.Random, folder: Path) -> None:
    """Whatever a server answers is a reward, none, or a refusal, and what it answered wrongly is asked again."""
    statuses = rng.choice([[200], [200], [200, 500, 429], [404], [200, 302], [503, 200]])

    def reply(_: Any, __: int) -> Reply:
        return Reply(body(rng), status=rng.choice(statuses))

    with serving(reply) as stub:
        access = Access(stub.url, first_wait=0.001, timeout=2.0, retries=2)
        require_rewards(annotator(rng, access, AnswerStore()))


CLASSES: dict[str, tuple[int, Callable[[random.Random, Path], None]]] = {
    "reward function": (3, reward_function),
    "server": (1, server),
}
